package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// Digest is what is kept of a token.
//
// It is one round of SHA-256. A slow hash (bcrypt, Argon2) makes up for secrets
// that can be guessed; a token is 256 random bits that nobody can guess at any
// speed, and it is checked with every request. docs/decisions/access.md says
// more.
type Digest [sha256.Size]byte

// Token is one that the daemon knows, by its digest alone.
type Token struct {
	Digest Digest
	Caller Caller
}

// prefix lets people, and programs that look for secrets in the wrong places,
// tell what a token is for.
const prefix = "shepherd_"

// NewToken makes a token: 32 random bytes in base64url, after a prefix.
func NewToken() string {
	secret := make([]byte, 32)
	rand.Read(secret)
	return prefix + base64.RawURLEncoding.EncodeToString(secret)
}

// DigestOf is the digest of a token.
func DigestOf(token string) Digest { return sha256.Sum256([]byte(token)) }

// String is the digest as configurations have it: "sha256:" and 64 hexadecimal
// digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// ParseDigest reads what String writes, in digits of either case. The error does
// not repeat what it was given: that may be a token in the wrong place.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	digits, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(digits) != hex.EncodedLen(len(d)) {
		return Digest{}, errDigest
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, errDigest
	}
	return d, nil
}

var errDigest = errors.New("not the hash of a token; expected sha256: and 64 hexadecimal digits, as `shepherdd token new` prints")

// longestToken is how much of a header is looked at.
const longestToken = 4096

// bearer returns the token of an Authorization header (RFC 6750, section 2.1);
// ok is false for every other one.
func bearer(header string) (token string, ok bool) {
	const scheme = "bearer "
	if len(header) > longestToken || len(header) <= len(scheme) || !strings.EqualFold(header[:len(scheme)], scheme) {
		return "", false
	}
	token = strings.Trim(header[len(scheme):], " ")
	if !ValidToken(token) {
		return "", false
	}
	return token, true
}

// ValidToken reports whether an Authorization header can carry a token: it is a
// token68 of RFC 9110, section 11.2.
func ValidToken(token string) bool {
	for i := range len(token) {
		if c := token[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~+/=", c) >= 0) {
			return false
		}
	}
	return token != "" && len(token) <= longestToken-len("bearer ")
}

// find looks a token up. All of them are compared, each in a time that does not
// depend on what is compared.
func find(known []Token, token string) (Caller, bool) {
	shown := DigestOf(token)
	var found *Token
	for i := range known {
		if subtle.ConstantTimeCompare(known[i].Digest[:], shown[:]) == 1 {
			found = &known[i]
		}
	}
	if found == nil {
		return Caller{}, false
	}
	return found.Caller, true
}
