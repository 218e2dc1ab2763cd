package embedded

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"slices"
	"strconv"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

const (
	maxBuckets    = 10_000 // in one answer to a client that asks for pages
	bucketsAtOnce = 1000   // are held in memory
)

type bucketXML struct {
	XMLName      xml.Name `xml:"Bucket"`
	Name         string
	CreationDate string
	BucketRegion string
}

// listBuckets answers with all buckets, or with a page when the client asks for
// pages. The document is written as it is made, whatever the number of buckets.
func (h *handler) listBuckets(r *request) error {
	limit, paged, err := r.number("max-buckets", 0, 1, maxBuckets+1)
	if err != nil || limit > maxBuckets {
		return badRequest(codeInvalidArgument, "Argument max-buckets must be an integer between 1 and %d.", maxBuckets)
	}
	after, err := decodeToken(r.query("continuation-token"))
	if err != nil {
		return err
	}
	prefix := r.query("prefix")
	page := bucketsAtOnce
	if paged {
		page = min(page, limit)
	}
	buckets, more, err := h.store.Buckets(r.Context(), prefix, after, page)
	if err != nil {
		return err
	}
	r.w.Header().Set("Content-Type", "application/xml")
	r.w.WriteHeader(http.StatusOK)
	e := xml.NewEncoder(r.w)
	start := func(name string) xml.StartElement { return xml.StartElement{Name: xml.Name{Local: name}} }
	root := start("ListAllMyBucketsResult")
	root.Attr = []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: namespace}}
	list := start("Buckets")
	if _, err := r.w.Write([]byte(xml.Header)); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return e.EncodeToken(root) },
		func() error { return e.EncodeElement(owner, start("Owner")) },
		func() error { return e.EncodeToken(list) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for written := 0; ; {
		for _, b := range buckets {
			if err := e.Encode(bucketXML{Name: b.Name, CreationDate: wireTime(b.Created), BucketRegion: defaultRegion}); err != nil {
				return err
			}
			after = b.Name
		}
		written += len(buckets)
		if !more || paged && written >= limit {
			break
		}
		if paged {
			page = min(page, limit-written)
		}
		r.w.writeDeadline()
		if buckets, more, err = h.store.Buckets(r.Context(), prefix, after, page); err != nil {
			return err
		}
	}
	if err := e.EncodeToken(list.End()); err != nil {
		return err
	}
	if more {
		if err := e.EncodeElement(encodeToken(after), start("ContinuationToken")); err != nil {
			return err
		}
	}
	if prefix != "" {
		if err := e.EncodeElement(prefix, start("Prefix")); err != nil {
			return err
		}
	}
	if err := e.EncodeToken(root.End()); err != nil {
		return err
	}
	return e.Close()
}

// Tokens say where a listing goes on. Clients are not to read them.
func encodeToken(after string) string { return base64.RawURLEncoding.EncodeToString([]byte(after)) }

func decodeToken(token string) (string, error) {
	after, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return "", badRequest(codeInvalidArgument, "The continuation token provided is incorrect.")
	}
	return string(after), nil
}

// number reads a query parameter that is a number, and says whether it is there.
// One over most is taken as most.
func (r *request) number(name string, otherwise, least, most int) (n int, there bool, err error) {
	text := r.query(name)
	if text == "" {
		return otherwise, false, nil
	}
	n, err = strconv.Atoi(text)
	if err != nil || n < least {
		return 0, true, badRequest(codeInvalidArgument, "Argument %s must be an integer between %d and 2147483647", name, least)
	}
	return min(n, most), true, nil
}

// defaultRegion is where all buckets are.
const defaultRegion = "us-east-1"

func (h *handler) createBucket(r *request) error {
	if !folder.ValidBucket(r.bucket) {
		return badRequest(codeInvalidBucketName,
			"A bucket's name has 3 to 63 of a-z, 0-9, - and ., begins and ends with a letter or digit, has one on both sides of every dot, and is no IP address.")
	}
	body, err := r.readBody()
	if err != nil {
		return err
	}
	if len(body) > 0 {
		var in struct {
			XMLName            xml.Name `xml:"CreateBucketConfiguration"`
			LocationConstraint string   // all the same here
			Bucket             struct{ Type string }
			Tags               []tagXML `xml:"Tags>Tag"`
		}
		if err := xml.Unmarshal(body, &in); err != nil {
			return badRequest(codeMalformedXML, "The document in the body cannot be read: %v.", err)
		}
		if in.Bucket.Type != "" || len(in.Tags) > 0 {
			return notImplemented("Directory buckets, and tags at a bucket's creation, are not supported here.")
		}
	}
	if err := h.store.CreateBucket(r.bucket); err != nil {
		return err
	}
	r.w.Header().Set("Location", "/"+r.bucket)
	r.w.Header().Set("X-Amz-Bucket-Arn", "arn:aws:s3:::"+r.bucket)
	return nil
}

func (h *handler) deleteBucket(r *request) error {
	if err := h.store.DeleteBucket(r.bucket); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handler) headBucket(r *request) error {
	if _, err := h.store.StatBucket(r.bucket); err != nil {
		return err
	}
	r.w.Header().Set("X-Amz-Bucket-Region", defaultRegion)
	return nil
}

func (h *handler) getBucketTagging(r *request) error {
	settings, err := h.store.Settings(r.bucket)
	if err != nil {
		return err
	}
	if len(settings.Tags) == 0 {
		return newError(http.StatusNotFound, "NoSuchTagSet", "The TagSet does not exist.")
	}
	return writeXML(r.w, r.Request, newTaggingXML(settings.Tags))
}

func (h *handler) putBucketTagging(r *request) error {
	tags, err := r.readTags(maxBucketTags)
	if err != nil {
		return err
	}
	if err := h.store.SetSettings(r.bucket, folder.Settings{Tags: tags}); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handler) deleteBucketTagging(r *request) error {
	if err := h.store.SetSettings(r.bucket, folder.Settings{}); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// Bounds of tags, as
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html has them.
const (
	maxObjectTags = 10
	maxBucketTags = 50
	maxTagKey     = 128 // characters
	maxTagValue   = 256
)

type tagXML struct{ Key, Value string }

type taggingXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ Tagging"`
	Tags    []tagXML `xml:"TagSet>Tag"`
}

func newTaggingXML(tags map[string]string) taggingXML {
	var x taggingXML
	for key, value := range tags {
		x.Tags = append(x.Tags, tagXML{key, value})
	}
	slices.SortFunc(x.Tags, func(a, b tagXML) int { return slices.Compare([]string{a.Key}, []string{b.Key}) })
	return x
}

// readTags reads the tags in a request's body.
func (r *request) readTags(most int) (map[string]string, error) {
	var in struct {
		XMLName xml.Name `xml:"Tagging"`
		Tags    []tagXML `xml:"TagSet>Tag"`
	}
	if err := readXML(r, &in); err != nil {
		return nil, err
	}
	tags := make(map[string]string, len(in.Tags))
	for _, t := range in.Tags {
		if _, twice := tags[t.Key]; twice {
			return nil, badRequest(codeInvalidTag, "Cannot provide multiple Tags with the same key.")
		}
		tags[t.Key] = t.Value
	}
	return tags, checkTags(tags, most)
}
