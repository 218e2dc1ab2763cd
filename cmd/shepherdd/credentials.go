package main

import "os"

// envCredentials is the variable by which systemd tells a service where its
// credentials are.
const envCredentials = "CREDENTIALS_DIRECTORY"

// credentialsOfService are where those of the packaged service are: while it is
// up, and where systemd takes them from.
func credentialsOfService() []string {
	return []string{"/run/credentials/shepherdd.service", "/etc/credstore"}
}

// environmentWith is the variable as the daemon would see it that the given
// configuration is for: who runs commands by hand has not the service's
// credentials in the environment, but may be allowed to read them.
func environmentWith(places []string, name string) (string, bool) {
	if value, set := os.LookupEnv(name); set || name != envCredentials {
		return value, set
	}
	for _, dir := range places {
		if _, err := os.ReadDir(dir); err == nil {
			return dir, true
		}
	}
	return "", false
}
