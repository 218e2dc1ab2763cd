package daemon

import "os"

// envCredentials is the variable in which systemd gives a service the directory of
// its credentials.
const envCredentials = "CREDENTIALS_DIRECTORY"

// credentialsOfService are the directories that hold the packaged service's
// credentials: the one of the running service, and the one systemd reads.
func credentialsOfService() []string {
	return []string{"/run/credentials/shepherdd.service", "/etc/credstore"}
}

// environmentWith looks up a variable as the packaged service sees it. A command started by
// hand lacks $CREDENTIALS_DIRECTORY, but its user may be able to read one of the places.
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
