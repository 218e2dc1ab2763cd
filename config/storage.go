package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/iterait/shepherd/internal/bucketname"
	"github.com/iterait/shepherd/job"
)

// checkStorage checks the section storage.
func checkStorage(r *report, s *Storage) {
	if !r.embedded() {
		r.reject("storage.url", urlProblem(s.URL, "access_key and secret_key", false))
		r.missing("storage.access_key", "the access key of the S3 storage")
		if s.SecretKeyFile == "" {
			r.missing("storage.secret_key", "the secret key of the S3 storage")
		}
		for _, key := range []string{"storage.listen", "storage.path", "storage.domain", "storage.cors_origins", "storage.min_free"} {
			if r.at(key) != nil {
				r.reject(key, "belongs to the embedded storage, which there is only without storage.url; remove one of them")
			}
		}
	} else {
		if s.AccessKey != "" && s.SecretKeyFile == "" {
			r.missing("storage.secret_key", "a secret key for the access key")
		}
		if !s.SecretKey.IsZero() || s.SecretKeyFile != "" {
			r.missing("storage.access_key", "an access key for the secret key")
		}
		r.expect(validAddress(s.Listen), "storage.listen", "HOST:PORT such as 127.0.0.1:7000 (port 0 for a free one)")
		for _, key := range []string{"storage.session_token", "storage.ca_file", "storage.addressing"} {
			if r.at(key) != nil {
				r.reject(key, "belongs to a storage elsewhere, which storage.url names; add storage.url, or remove this")
			}
		}
	}
	r.notEmpty("storage.public_url", s.PublicURL == "")
	if s.PublicURL != "" {
		r.reject("storage.public_url", urlProblem(s.PublicURL, "access_key and secret_key", false))
	}
	checkKeep(r, &s.Keep)
	r.expect(s.KeepUploads >= time.Minute && s.KeepUploads <= job.MaxKeep, "storage.keep_uploads", "a duration, 1m or longer")
	r.expect(s.MaxUpload > 0, "storage.max_upload", "a size, 1B or more")
	r.notEmpty("storage.session_token", s.SessionToken.IsZero())
	r.notEmpty("storage.ca_file", s.CAFile == "")
	r.expect(s.CAFile == "" || filepath.IsAbs(s.CAFile), "storage.ca_file", "an absolute path")
	if s.Addressing != "" {
		r.word("storage.addressing", s.Addressing, []string{"auto", "path", "host"})
	}
	r.expect(!slices.ContainsFunc(s.Domains, func(d string) bool { return !validHost(d) }), "storage.domain", "host names such as s3.example.com")
	r.expect(!slices.ContainsFunc(s.CORSOrigins, func(o string) bool { return o != "*" && !validOrigin(o) }), "storage.cors_origins",
		"origins of web pages such as https://app.example.com, or *")
	if !s.SecretKey.IsZero() && s.SecretKeyFile != "" {
		r.reject("storage.secret_key_file", "is there beside storage.secret_key; remove one of them")
	}
	r.notEmpty("storage.secret_key_file", s.SecretKeyFile == "")
	r.expect(s.SecretKeyFile == "" || filepath.IsAbs(s.SecretKeyFile), "storage.secret_key_file", "an absolute path")
	r.notEmpty("storage.access_key", s.AccessKey == "")
	r.notEmpty("storage.secret_key", s.SecretKey.IsZero())
	r.expect(s.Bucket == "" || bucketname.Valid(s.Bucket), "storage.bucket",
		"a bucket's name: 3 to 63 of a-z, 0-9, . and -, a letter or digit first, last and beside every dot, and no IP address")
}

// checkKeep checks the retention times.
func checkKeep(r *report, k *Keep) {
	times := func(n *node, path string, t KeepTimes) {
		for key, d := range map[string]*time.Duration{"done": t.Done, "failed": t.Failed, "cancelled": t.Cancelled} {
			value, at := n.get(key), below(path, key)
			if d == nil || value == nil || r.problems.cover(value, at) || *d >= 0 && *d <= job.MaxKeep {
				continue
			}
			r.wrong(value, at, "expected a duration from 0s (for ever) to %s, found %s", job.FormatDuration(job.MaxKeep), value.shown())
		}
	}
	times(r.at("storage.keep"), "storage.keep", k.KeepTimes)
	for i, m := range k.Models {
		if item := r.modelPattern("storage.keep.models", i, m.Model); item != nil {
			times(item, fmt.Sprintf("storage.keep.models[%d]", i), m.KeepTimes)
		}
	}
}
