package embedded

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// Uploads by HTML form ("presigned POST"), as described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-post-example.html and
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html

const maxForm = 64 << 10 // bytes of all fields but the file

// form is what comes before the file in a form.
type form struct {
	fields map[string]string // by name in lower case
	file   *multipart.Part
}

// field returns a field's value.
func (f *form) field(name string) string { return f.fields[name] }

// readForm reads a form as far as its file.
func readForm(r *request) (*form, error) {
	parts, err := r.MultipartReader()
	if errors.Is(err, http.ErrNotMultipart) {
		return nil, newError(http.StatusPreconditionFailed, codePreconditionFailed, "Bucket POST must be of the enclosure-type multipart/form-data")
	}
	if err != nil {
		return nil, badRequest(codeMalformedPOST, "The body of your POST request is not well-formed multipart/form-data.")
	}
	f := &form{fields: map[string]string{}}
	for left := int64(maxForm); ; {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return nil, badRequest(codeInvalidArgument, "POST requires exactly one file upload per request.")
		}
		if err != nil {
			return nil, badRequest(codeMalformedPOST, "The body of your POST request is not well-formed multipart/form-data.")
		}
		name := strings.ToLower(part.FormName())
		if name == "" {
			return nil, badRequest(codeMalformedPOST, "The body of your POST request is not well-formed multipart/form-data: a field has no name.")
		}
		if name == "file" {
			f.file = part
			return f, nil
		}
		value, err := io.ReadAll(io.LimitReader(part, left+1))
		if err != nil {
			return nil, bodyError(err)
		}
		if left -= int64(len(value)); left < 0 {
			return nil, badRequest("MaxPostPreDataLengthExceededError", "The fields before the file take more than %d bytes.", maxForm)
		}
		f.fields[name] = string(value)
	}
}

// formOperation knows the fields of a form that stand for headers.
var formOperation = &operation{
	target:  target{method: http.MethodPost, on: onBucket},
	sums:    sumOfData,
	headers: append([]string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"}, attributeHeaders...),
}

// postObject stores the file of a form.
func (h *handler) postObject(r *request) error {
	for _, p := range r.params {
		return notImplemented("The query parameter %s is not supported here.", p[0])
	}
	r.w.readDeadline(bodyTimeout)
	f, err := readForm(r)
	if err != nil {
		return err
	}
	key := f.field("key")
	if key == "" {
		return badRequest(codeInvalidArgument, "Bucket POST must contain a field named 'key'. If it is specified, please check the order of the fields.")
	}
	f.fields["key"] = strings.ReplaceAll(key, "${filename}", f.file.FileName())
	key = f.fields["key"]
	if refused := h.verifier.verifyForm(f); refused != nil {
		return refused
	}
	f.fields["bucket"] = r.bucket
	limits, err := checkPolicy(f, h.verifier.now())
	if err != nil {
		return err
	}
	// What the fields say of the object is what headers say of it elsewhere.
	header := http.Header{}
	for name, value := range f.fields {
		header.Set(name, value)
	}
	if acl := f.field("acl"); acl != "" {
		header.Set("X-Amz-Acl", acl)
	}
	if err := formOperation.allows(&request{Request: &http.Request{Method: http.MethodPost, Header: header}, w: r.w}); err != nil {
		return err
	}
	if text := f.field("tagging"); text != "" {
		var in struct { // in S3's namespace or in none
			XMLName xml.Name `xml:"Tagging"`
			Tags    []tagXML `xml:"TagSet>Tag"`
		}
		if err := xml.Unmarshal([]byte(text), &in); err != nil {
			return badRequest(codeMalformedXML, "The tags cannot be read: %v.", err)
		}
		tags := url.Values{}
		for _, t := range in.Tags {
			tags.Add(t.Key, t.Value)
		}
		header.Set(taggingHeader, tags.Encode())
	}
	header.Set("X-Amz-Sdk-Checksum-Algorithm", f.field("x-amz-checksum-algorithm"))
	header.Del("Content-Encoding")
	if e := f.field("content-encoding"); e != "" {
		header.Set("Content-Encoding", e)
	}
	attrs, err := attributesOf(header)
	if err != nil {
		return err
	}
	if err := h.space.Check(r.ContentLength); err != nil {
		return err
	}
	if _, err := h.store.StatBucket(r.bucket); err != nil {
		return err
	}
	body, e := newFormPayload(f.file, header, limits.most, r.w.readDeadline)
	if e != nil {
		return e
	}
	info, err := h.store.Put(r.bucket, key, body, -1, folder.Info{Attrs: attrs}, func(info *folder.Info) error {
		if body.read < limits.least {
			return badRequest(codeEntityTooSmall, "Your proposed upload is smaller than the minimum allowed size: it has %d bytes.", body.read)
		}
		info.Checksum = body.Sum()
		return body.check()
	}, nil)
	if err != nil {
		return err
	}
	return answerForm(r, f, info)
}

// formPayload is the file in a form: its size is known when it has been read.
type formPayload struct {
	payload
	read, most int64
}

func newFormPayload(file io.Reader, h http.Header, most int64, deadline func(time.Duration)) (*formPayload, *apiError) {
	p := &formPayload{payload: payload{source: file, deadline: deadline}, most: most}
	if e := p.expectMD5(h); e != nil {
		return nil, e
	}
	return p, p.expectChecksum(h, "", true)
}

func (p *formPayload) Read(b []byte) (int, error) {
	p.deadline(bodyTimeout)
	n, err := p.source.Read(b)
	if p.md5 != nil {
		p.md5.Write(b[:n])
	}
	p.checksum.Write(b[:n])
	if p.read += int64(n); p.read > p.most {
		return n, badRequest(codeEntityTooLarge, "Your proposed upload exceeds the maximum allowed size of %d bytes.", p.most)
	}
	if err != nil && err != io.EOF {
		err = bodyError(err)
	}
	return n, err
}

// answerForm answers as the form says.
func answerForm(r *request, f *form, info *folder.Info) error {
	h := r.w.Header()
	location := "http://" + r.Host + escapePath("/"+r.bucket+"/"+info.Key)
	h.Set("ETag", quote(info.ETag))
	h.Set("Location", location)
	setChecksum(h, info.Checksum, true)
	redirect := f.field("success_action_redirect")
	if redirect == "" {
		redirect = f.field("redirect")
	}
	if u, err := url.Parse(redirect); redirect != "" && err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		q := u.Query()
		q.Set("bucket", r.bucket)
		q.Set("key", info.Key)
		q.Set("etag", quote(info.ETag))
		u.RawQuery = q.Encode()
		h.Set("Location", u.String())
		r.w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	switch f.field("success_action_status") {
	case "200":
		r.w.WriteHeader(http.StatusOK)
	case "201":
		return writeXMLStatus(r.w, r.Request, http.StatusCreated, struct {
			XMLName                     xml.Name `xml:"PostResponse"`
			Location, Bucket, Key, ETag string
		}{Location: location, Bucket: r.bucket, Key: info.Key, ETag: quote(info.ETag)})
	default:
		r.w.WriteHeader(http.StatusNoContent)
	}
	return nil
}

// verifyForm returns an error unless a form's policy is signed with the keys: by
// Signature Version 4, or by Version 2, which older clients use for forms.
func (v *verifier) verifyForm(f *form) *apiError {
	policy := f.field("policy")
	if policy == "" {
		if f.field("x-amz-signature") == "" && f.field("signature") == "" {
			return newError(http.StatusForbidden, codeAccessDenied, "Access denied: the form has no policy.")
		}
		return newError(http.StatusForbidden, codeAccessDenied, "The form has a signature and no policy.")
	}
	if f.field("x-amz-algorithm") == "" {
		key, signature := f.field("awsaccesskeyid"), f.field("signature")
		if key == "" || signature == "" {
			return badRequest(codeInvalidArgument, "Bucket POST must contain a field named 'AWSAccessKeyId' and one named 'signature', or the fields of Signature Version 4.")
		}
		if subtle.ConstantTimeCompare([]byte(key), []byte(v.accessKey)) != 1 {
			return errUnknownKey()
		}
		return compareSignatures(v.signV2(policy), signature)
	}
	if f.field("x-amz-algorithm") != algorithm {
		return badRequest(codeInvalidArgument, "Only %s is supported", algorithm)
	}
	c := claim{value: f.field("x-amz-signature"), time: f.field("x-amz-date")}
	if e := c.fill(codeInvalidArgument, f.field("x-amz-credential"), "host"); e != nil {
		return e
	}
	if subtle.ConstantTimeCompare([]byte(c.accessKey), []byte(v.accessKey)) != 1 {
		return errUnknownKey()
	}
	if at, err := time.Parse(amzTime, c.time); err != nil || !strings.HasPrefix(c.scope, c.time[:8]+"/") || at.Sub(v.now()) > maxSkew {
		return newError(http.StatusForbidden, codeAccessDenied, "The form needs the date it was signed at, the same as its credential's.")
	}
	return compareSignatures(fmt.Sprintf("%x", mac(v.signingKey(c.scope), policy)), c.value)
}

// sizeLimits are what a policy says of a file's size, in bytes.
type sizeLimits struct{ least, most int64 }

// maxPost is the largest file of a form.
const maxPost = 5 << 30

// checkPolicy returns an error unless a form is what its policy allows.
func checkPolicy(f *form, now time.Time) (sizeLimits, error) {
	limits := sizeLimits{0, maxPost}
	invalid := func(what string) error {
		return badRequest(codeInvalidPolicy, "Invalid Policy: %s.", what)
	}
	denied := func(what string) error {
		return newError(http.StatusForbidden, codeAccessDenied, "Invalid according to Policy: Policy Condition failed: %s", what)
	}
	text, err := base64.StdEncoding.DecodeString(f.field("policy"))
	if err != nil {
		return limits, invalid("it is not base64")
	}
	var policy map[string]json.RawMessage // whose names are in lower case alone
	if err := json.Unmarshal(text, &policy); err != nil {
		return limits, invalid("Invalid JSON")
	}
	var expiration string
	var conditions []json.RawMessage
	if json.Unmarshal(policy["expiration"], &expiration) != nil || json.Unmarshal(policy["conditions"], &conditions) != nil || conditions == nil {
		return limits, invalid("expiration and conditions are needed")
	}
	expires, err := time.Parse(time.RFC3339, expiration)
	if err != nil {
		return limits, invalid("the expiration is not a time")
	}
	if now.After(expires) {
		return limits, newError(http.StatusForbidden, codeAccessDenied, "Invalid according to Policy: Policy expired.")
	}
	named := map[string]bool{}
	value := func(name string) (string, string) {
		name = strings.ToLower(strings.TrimPrefix(name, "$"))
		named[name] = true
		return name, f.fields[name]
	}
	for _, raw := range conditions {
		var exact map[string]any
		var list []any
		switch {
		case json.Unmarshal(raw, &exact) == nil && exact != nil:
			if len(exact) == 0 {
				return limits, invalid("a condition is empty")
			}
			for name, want := range exact {
				text, ok := want.(string)
				if !ok {
					return limits, invalid("a value is not a string")
				}
				if name, got := value(name); got != text {
					return limits, denied(fmt.Sprintf("[\"eq\", \"$%s\", %q]", name, text))
				}
			}
		case json.Unmarshal(raw, &list) == nil && len(list) == 3:
			kind, _ := list[0].(string)
			kind = strings.ToLower(kind)
			if kind == "content-length-range" {
				if limits.least, err = policyNumber(list[1]); err == nil {
					limits.most, err = policyNumber(list[2])
				}
				if err != nil || limits.least < 0 || limits.most < limits.least {
					return limits, invalid("content-length-range needs two numbers")
				}
				limits.most = min(limits.most, maxPost)
				continue
			}
			first, ok1 := list[1].(string)
			want, ok2 := list[2].(string)
			if !ok1 || !ok2 || !strings.HasPrefix(first, "$") {
				return limits, invalid("a condition names no field")
			}
			name, got := value(first)
			switch kind {
			case "eq":
				ok1 = got == want
			case "starts-with":
				ok1 = strings.HasPrefix(got, want)
			default:
				return limits, invalid("a condition is neither eq, starts-with nor content-length-range")
			}
			if !ok1 {
				return limits, denied(fmt.Sprintf("[%q, \"$%s\", %q]", kind, name, want))
			}
		default:
			return limits, invalid("a condition is neither an object nor a list of three")
		}
	}
	for name := range f.fields {
		switch {
		case named[name], strings.HasPrefix(name, "x-ignore-"), strings.HasPrefix(name, "x-amz-checksum-"):
		case name == "policy", name == "signature", name == "awsaccesskeyid", name == "x-amz-signature", name == "submit":
		default:
			return limits, newError(http.StatusForbidden, codeAccessDenied, "Invalid according to Policy: Extra input fields: %s", name)
		}
	}
	return limits, nil
}

// policyNumber reads a number, which some clients write as a string.
func policyNumber(v any) (int64, error) {
	switch n := v.(type) {
	case float64:
		return int64(n), nil
	case string:
		return strconv.ParseInt(n, 10, 64)
	}
	return 0, errors.New("not a number")
}
