package job

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Trust is the list of models that may run. The first rule that matches a model counts; a
// model that no rule matches must not run. Nil trusts every model.
type Trust []Rule

// Rule trusts the models whose name and version match its patterns, in which * stands for
// any characters except a slash and ** for any characters. ParseRule creates it.
type Rule struct {
	Name string
	// Version is empty for any version.
	Version string
	// Digest, if not empty, is the required digest of the model's image.
	Digest string

	name, version *regexp.Regexp
}

// Untrusted is returned for a model that must not run here.
type Untrusted struct {
	Model  Model
	Reason string
}

func (e *Untrusted) Error() string { return fmt.Sprintf("Model `%s` %s", e.Model, e.Reason) }

// ParseRule reads NAME[:VERSION][@sha256:DIGEST].
func ParseRule(s string) (Rule, error) {
	name, digest, pinned := strings.Cut(s, "@")
	if pinned && !isDigest(digest) {
		return Rule{}, errors.New("what follows @ is not a digest; expected sha256: and 64 hexadecimal digits in lower case")
	}
	if !utf8.ValidString(name) {
		return Rule{}, errors.New("is not UTF-8")
	}
	name, version, versioned := strings.Cut(name, ":")
	r := Rule{Name: name, Version: version, Digest: digest, name: pattern(name), version: pattern(cmp.Or(version, "**"))}
	if versioned && version == "" {
		return Rule{}, errors.New("has no version after the colon; leave the colon out for any version")
	}
	if err := (Model{Name: name, Version: version}).Validate(); err != nil {
		return Rule{}, fmt.Errorf("%w; expected NAME[:VERSION][@sha256:DIGEST], with * for any characters", err)
	}
	return r, nil
}

// Matches reports whether the rule's patterns match the model. It ignores the digest.
func (r Rule) Matches(m Model) bool {
	return r.name != nil && r.name.MatchString(m.Name) && r.version.MatchString(m.Version)
}

// String returns the rule in the form that ParseRule reads.
func (r Rule) String() string {
	s := Model{Name: r.Name, Version: r.Version}.String()
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// Check returns the digest that the model's image must have, empty for any. The error is
// *Untrusted.
func (t Trust) Check(m Model) (digest string, err error) {
	if t == nil {
		return "", nil
	}
	// A version may be a tag, a digest, or TAG@DIGEST.
	version, given, _ := strings.Cut(m.Version, "@")
	if given == "" && isDigest(version) {
		version, given = "", version
	}
	for _, r := range t {
		if !r.name.MatchString(m.Name) || !r.takes(version, given) {
			continue
		}
		switch {
		case given == "" || r.Digest == given:
			return r.Digest, nil
		case r.Digest != "":
			return "", &Untrusted{Model: m, Reason: "has another digest than the one that is trusted here (models.allow)"}
		case !r.any():
			// The tag says nothing about what a digest brings.
			return "", &Untrusted{Model: m, Reason: "is asked for by its digest, and what is trusted here is a version (models.allow)"}
		}
		return "", nil
	}
	return "", &Untrusted{Model: m, Reason: "is not among those that may run here (models.allow)"}
}

func (r Rule) any() bool { return r.Version == "" || r.Version == "*" || r.Version == "**" }

// takes reports whether the rule applies to a version: a tag, empty for none, and possibly a
// digest. Without tag and digest, the tag is latest.
func (r Rule) takes(tag, given string) bool {
	switch {
	case r.any() || tag != "" && r.version.MatchString(tag):
		return true
	case tag != "":
		return false
	case given != "":
		return r.Digest == given
	}
	return r.version.MatchString("latest")
}

func isDigest(s string) bool {
	digits, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(digits) == 64 && strings.Trim(digits, "0123456789abcdef") == ""
}

// pattern compiles a pattern; RE2 matches it in linear time.
func pattern(s string) *regexp.Regexp {
	s = regexp.QuoteMeta(s)
	s = strings.NewReplacer(`\*\*`, `.*`, `\*`, `[^/]*`).Replace(s)
	return regexp.MustCompile(`(?s)^(?:` + s + `)$`)
}
