package embedded

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// credentialsFile holds the keys of a storage directory that was given none.
const credentialsFile = "credentials.json"

type credentials struct {
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
}

// Credentials returns the keys of a storage directory, the same ones at every
// call. The first call makes them up and keeps them in the directory, readable
// by its owner alone. It may be called while a server has the directory open.
func Credentials(dir string) (accessKey, secretKey string, err error) {
	path := filepath.Join(dir, credentialsFile)
	c, err := readCredentials(path)
	if errors.Is(err, os.ErrNotExist) {
		if err = createCredentials(dir, path); err == nil {
			c, err = readCredentials(path)
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("credentials of storage directory %s: %w", dir, err)
	}
	return c.AccessKey, c.SecretKey, nil
}

func readCredentials(path string) (credentials, error) {
	var c credentials
	text, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(text, &c); err != nil || c.AccessKey == "" || c.SecretKey == "" {
		return c, fmt.Errorf("%s does not hold an access_key and a secret_key; restore it, or remove it to get new ones", path)
	}
	return c, nil
}

// createCredentials writes the file whole or not at all. Of several that do so
// at once, one succeeds and the others leave its file alone.
func createCredentials(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text, err := json.MarshalIndent(credentials{AccessKey: rand.Text()[:20], SecretKey: rand.Text() + rand.Text()}, "", "  ")
	if err != nil {
		return err
	}
	draft, err := os.CreateTemp(dir, "."+credentialsFile+"-") // of mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(draft.Name())
	_, err = draft.Write(append(text, '\n'))
	if err := errors.Join(err, draft.Sync(), draft.Close()); err != nil {
		return err
	}
	if err := os.Link(draft.Name(), path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
