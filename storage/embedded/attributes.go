package embedded

import (
	"cmp"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// What a client says of an object is kept by the headers it says it with, in
// their canonical form.
const (
	metaPrefix     = "X-Amz-Meta-"
	taggingHeader  = "X-Amz-Tagging"
	redirectHeader = "X-Amz-Website-Redirect-Location"
	classHeader    = "X-Amz-Storage-Class"

	maxMetadata = 2 << 10 // bytes of names and values
	// defaultContentType is what S3 gives to objects that come without one.
	defaultContentType = "binary/octet-stream"
)

// standardClass is the storage class of an object whose client named none. It is not stored.
const standardClass = "STANDARD"

// storageClasses are those of S3 from which objects are read at once. A class is stored and
// returned; all objects are stored alike.
var storageClasses = []string{standardClass, "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"}

// classOf is the storage class that attributes have.
func classOf(attrs map[string]string) string { return cmp.Or(attrs[classHeader], standardClass) }

var systemAttributes = []string{"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires"}

// attributesOf reads what a client says of an object from its headers.
func attributesOf(h http.Header) (map[string]string, error) {
	attrs := map[string]string{}
	for _, name := range append(systemAttributes, redirectHeader) {
		if value := strings.Join(h.Values(name), ", "); value != "" {
			attrs[name] = value
		}
	}
	if to := attrs[redirectHeader]; to != "" && !strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "http://") && !strings.HasPrefix(to, "https://") {
		return nil, badRequest("InvalidRedirectLocation", "The website redirect location must have a prefix of 'http://' or 'https://' or '/'.")
	}
	if class := strings.ToUpper(h.Get(classHeader)); class != "" && class != standardClass {
		attrs[classHeader] = class
	}
	if encoding := withoutChunks(attrs["Content-Encoding"]); encoding != "" {
		attrs["Content-Encoding"] = encoding
	} else {
		delete(attrs, "Content-Encoding")
	}
	if attrs["Content-Type"] == "" {
		attrs["Content-Type"] = defaultContentType
	}
	size := 0
	for name, values := range h {
		if !strings.HasPrefix(name, metaPrefix) {
			continue
		}
		value, err := decodeMeta(strings.Join(values, ","))
		if err != nil {
			return nil, err
		}
		attrs[name] = value
		size += len(name) - len(metaPrefix) + len(value)
	}
	if size > maxMetadata {
		return nil, badRequest(codeMetadataTooLarge, "Your metadata headers exceed the maximum allowed metadata size: %d bytes, of %d.", size, maxMetadata)
	}
	if text := h.Get(taggingHeader); text != "" {
		tags, err := parseTagging(text)
		if err != nil {
			return nil, err
		}
		setTags(attrs, tags)
	}
	return attrs, nil
}

// withoutChunks takes "aws-chunked", which says how a body is sent, out of a
// list of encodings, which say what an object is.
func withoutChunks(encodings string) string {
	var kept []string
	for e := range strings.SplitSeq(encodings, ",") {
		if e = strings.TrimSpace(e); e != "" && !strings.EqualFold(e, "aws-chunked") {
			kept = append(kept, e)
		}
	}
	return strings.Join(kept, ", ")
}

// decodeMeta reads a value of metadata: text in UTF-8, or in encoded words (RFC
// 2047), which is how S3 and its clients write other text than ASCII.
func decodeMeta(value string) (string, error) {
	if strings.Contains(value, "=?") {
		if text, err := new(mime.WordDecoder).DecodeHeader(value); err == nil {
			value = text
		}
	}
	if !utf8.ValidString(value) {
		return "", badRequest(codeInvalidArgument, "Metadata must be UTF-8, or encoded words (RFC 2047).")
	}
	return value, nil
}

// writeAttributes tells a client what is known of an object.
func writeAttributes(h http.Header, info *folder.Info) {
	for name, value := range info.Attrs {
		switch {
		case strings.HasPrefix(name, metaPrefix):
			// In lower case, as S3 writes it: some clients show the name as it comes.
			h[strings.ToLower(name)] = []string{mime.BEncoding.Encode("UTF-8", value)}
		case name == taggingHeader:
			if tags, err := url.ParseQuery(value); err == nil && len(tags) > 0 {
				h.Set("X-Amz-Tagging-Count", strconv.Itoa(len(tags)))
			}
		default:
			h.Set(name, value)
		}
	}
	h.Set("ETag", quote(info.ETag))
	h.Set("Last-Modified", info.Modified.UTC().Format(http.TimeFormat))
	h.Set("Accept-Ranges", "bytes")
}

// parseTagging reads tags as they are in a header: as a query.
func parseTagging(text string) (map[string]string, error) {
	values, err := url.ParseQuery(text)
	if err != nil {
		return nil, badRequest(codeInvalidArgument, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
	}
	tags := make(map[string]string, len(values))
	for key, v := range values {
		if len(v) > 1 {
			return nil, badRequest(codeInvalidArgument, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
		}
		tags[key] = v[0]
	}
	return tags, checkTags(tags, maxObjectTags)
}

// checkTags refuses tags that S3's bounds do not allow.
func checkTags(tags map[string]string, most int) error {
	if len(tags) > most {
		return badRequest("BadRequest", "Tags cannot be greater than %d", most)
	}
	for key, value := range tags {
		if n := utf8.RuneCountInString(key); n < 1 || n > maxTagKey || strings.ContainsFunc(key, notInTags) {
			return badRequest(codeInvalidTag, "The TagKey you have provided is invalid")
		}
		if utf8.RuneCountInString(value) > maxTagValue || strings.ContainsFunc(value, notInTags) {
			return badRequest(codeInvalidTag, "The TagValue you have provided is invalid")
		}
	}
	return nil
}

// notInTags reports whether a character is none of those that tags are made of:
// letters, digits, white space and "+-=._:/@".
func notInTags(r rune) bool {
	return !unicode.In(r, unicode.L, unicode.N, unicode.Z) && !strings.ContainsRune("+-=._:/@", r)
}

// setTags makes tags an attribute.
func setTags(attrs map[string]string, tags map[string]string) {
	if len(tags) == 0 {
		delete(attrs, taggingHeader)
		return
	}
	values := url.Values{}
	for key, value := range tags {
		values.Set(key, value)
	}
	attrs[taggingHeader] = values.Encode()
}

// tagsOf returns an object's tags.
func tagsOf(info *folder.Info) map[string]string {
	tags := map[string]string{}
	values, err := url.ParseQuery(info.Attrs[taggingHeader])
	if err != nil {
		return tags // setTags wrote it
	}
	for key := range values {
		tags[key] = values.Get(key)
	}
	return tags
}
