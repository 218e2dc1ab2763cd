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

// Digest is the stored form of a token: one round of SHA-256. Slow hashes (bcrypt, Argon2)
// protect secrets that can be guessed; a token is 256 random bits, which cannot be guessed
// at any speed, and it is checked with every request. docs/decisions/access.md has more.
type Digest [sha256.Size]byte

// Token is a configured token.
type Token struct {
	Digest Digest
	Caller Caller
}

// prefix identifies tokens to people and to programs that scan for leaked secrets.
const prefix = "shepherd_"

// NewToken returns a new token: a prefix and 32 random bytes in base64url.
func NewToken() string {
	secret := make([]byte, 32)
	rand.Read(secret)
	return prefix + base64.RawURLEncoding.EncodeToString(secret)
}

// DigestOf returns the digest of a token.
func DigestOf(token string) Digest { return sha256.Sum256([]byte(token)) }

// String returns the digest as written in configurations: "sha256:" and 64 hexadecimal
// digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// ParseDigest reads the output of String, with digits in either case. The error does not
// repeat s, which may be a token in the wrong place.
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

// longestToken bounds the length of an Authorization header, in bytes.
const longestToken = 4096

// bearer returns the token of an Authorization header (RFC 6750, section 2.1); ok is false
// for other headers.
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

// ValidToken reports whether an Authorization header can carry the token: it must be a
// token68 of RFC 9110, section 11.2.
func ValidToken(token string) bool {
	for i := range len(token) {
		if c := token[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~+/=", c) >= 0) {
			return false
		}
	}
	return token != "" && len(token) <= longestToken-len("bearer ")
}

// find looks up a token. It compares all digests in constant time.
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
