package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bounds of a secret in bytes, as in Standard Webhooks.
const (
	minSecret = 24
	maxSecret = 64
)

// secretPrefix is the prefix of a secret's text.
const secretPrefix = "whsec_"

// Secret is a key with which messages are signed. It must not be logged.
type Secret []byte

// ParseSecret parses whsec_ and 24 to 64 bytes in base64. The error does not show the text.
func ParseSecret(text string) (Secret, error) {
	encoded, found := strings.CutPrefix(text, secretPrefix)
	secret, err := base64.StdEncoding.DecodeString(encoded)
	if !found || err != nil || len(secret) < minSecret || len(secret) > maxSecret {
		return nil, fmt.Errorf("expected whsec_ and %d to %d bytes in base64 (echo whsec_$(openssl rand -base64 32))", minSecret, maxSecret)
	}
	return secret, nil
}

// ParseSecrets parses one secret from each line that is not empty. There are several while a
// secret is replaced.
func ParseSecrets(text string) ([]Secret, error) {
	var secrets []Secret
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		secret, err := ParseSecret(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
		secrets = append(secrets, secret)
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("there is none: %w", errNoSecret)
	}
	return secrets, nil
}

var errNoSecret = fmt.Errorf("expected a line with whsec_ and %d to %d bytes in base64 (echo whsec_$(openssl rand -base64 32))", minSecret, maxSecret)

// Text returns the secret in the format of ParseSecret.
func (s Secret) Text() string { return secretPrefix + base64.StdEncoding.EncodeToString(s) }

// String returns stars.
func (s Secret) String() string { return "*****" }

// ForTenant derives the secret for the receivers that jobs of a tenant name. The secret of
// another tenant cannot be computed from it.
func (s Secret) ForTenant(tenant string) Secret {
	mac := hmac.New(sha256.New, s)
	mac.Write([]byte("shepherd webhooks of tenant\x00" + tenant))
	return mac.Sum(nil)
}

// Sign returns the value of the header webhook-signature: one signature for each secret.
func Sign(secrets []Secret, id string, at time.Time, payload []byte) string {
	signatures := make([]string, len(secrets))
	for i, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(payload)
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return strings.Join(signatures, " ")
}
