package embedded

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rclone/gofakes3"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// multipart answers one request about multipart uploads, as described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
// and the pages it links. gofakes3 keeps uploads in memory, where a restart
// ends them; these lie on disk.
type multipart struct {
	store       *folder.Store
	bucket, key string
	query       url.Values
	x           *exchange
}

const (
	maxListed  = 1000     // uploads or parts in one answer
	maxXML     = 10 << 20 // a list of 10,000 parts with checksums is a quarter of it
	maxUserSet = 2000     // bytes of names and values of a client's attributes, as gofakes3 has it
)

var errMethod = newFault(http.StatusMethodNotAllowed, gofakes3.ErrMethodNotAllowed, "The method is not allowed here.")

func (m *multipart) serve(r *http.Request) error {
	id := m.query.Get("uploadId")
	switch {
	case id == "" && r.Method == http.MethodGet:
		return m.listUploads(r)
	case id == "" && r.Method == http.MethodPost:
		return m.create(r)
	case id == "":
		return errMethod
	case r.Method == http.MethodPut && r.Header.Get("X-Amz-Copy-Source") != "":
		return m.copyPart(r, id)
	case r.Method == http.MethodPut:
		return m.putPart(r, id)
	case r.Method == http.MethodGet:
		return m.listParts(r, id)
	case r.Method == http.MethodPost:
		return m.complete(r, id)
	case r.Method == http.MethodDelete:
		if err := m.store.AbortUpload(m.bucket, m.key, id); err != nil {
			return err
		}
		m.x.WriteHeader(http.StatusNoContent)
		return nil
	}
	return errMethod
}

func (m *multipart) create(r *http.Request) error {
	attrs, err := attributesOf(r.Header)
	if err != nil {
		return err
	}
	id, err := m.store.CreateUpload(m.bucket, m.key, attrs)
	if err != nil {
		return err
	}
	return writeXML(m.x, r, struct {
		XMLName     xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ InitiateMultipartUploadResult"`
		Bucket, Key string
		UploadID    string `xml:"UploadId"`
	}{Bucket: m.bucket, Key: m.key, UploadID: id})
}

// attributesOf reads what a client says of an object from its headers.
func attributesOf(h http.Header) (map[string]string, error) {
	attrs := map[string]string{}
	size := 0
	for name, values := range h {
		switch name {
		case "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires":
		case gofakes3.TaggingMetadataKey:
			tags, err := url.ParseQuery(values[0])
			if err != nil {
				return nil, newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "x-amz-tagging cannot be read.")
			}
			attrs[name] = tags.Encode()
			continue
		default:
			if !strings.HasPrefix(name, "X-Amz-Meta-") {
				continue
			}
		}
		attrs[name] = values[0]
		size += len(name) + len(values[0])
	}
	if size > maxUserSet {
		return nil, newFault(http.StatusBadRequest, gofakes3.ErrMetadataTooLarge, "The attributes take %d bytes; %d are allowed.", size, maxUserSet)
	}
	return attributes(attrs), nil
}

func (m *multipart) partNumber() (int, error) {
	n, err := strconv.Atoi(m.query.Get("partNumber"))
	if err != nil || n < 1 || n > folder.MaxParts {
		return 0, newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "partNumber must be 1 to %d.", folder.MaxParts)
	}
	return n, nil
}

func (m *multipart) putPart(r *http.Request, id string) error {
	n, err := m.partNumber()
	if err != nil {
		return err
	}
	p := m.x.payload
	wantMD5, err := contentMD5(r.Header)
	if err != nil {
		return err
	}
	info, err := m.store.PutPart(m.bucket, m.key, id, n, p, p.size, wantMD5)
	if err != nil {
		return err
	}
	if p.checksum != nil {
		m.x.Header().Set(p.checksumName, p.checksumWant)
	}
	m.x.Header().Set("ETag", `"`+info.ETag+`"`)
	m.x.WriteHeader(http.StatusOK)
	return nil
}

// contentMD5 returns what compares a body with the MD5 that a header gives.
func contentMD5(h http.Header) (func(*folder.Info) error, error) {
	values, there := h["Content-Md5"]
	if !there {
		return nil, nil
	}
	want, err := base64.StdEncoding.DecodeString(values[0])
	if err != nil || len(want) != md5.Size {
		return nil, newFault(http.StatusBadRequest, gofakes3.ErrInvalidDigest, "The value of content-md5 is not an MD5.")
	}
	return func(info *folder.Info) error {
		if info.ETag != hex.EncodeToString(want) {
			return newFault(http.StatusBadRequest, gofakes3.ErrBadDigest, "The body does not have the MD5 of content-md5.")
		}
		return nil
	}, nil
}

func (m *multipart) copyPart(r *http.Request, id string) error {
	n, err := m.partNumber()
	if err != nil {
		return err
	}
	source, err := url.PathUnescape(strings.TrimPrefix(r.Header.Get("X-Amz-Copy-Source"), "/"))
	if err != nil {
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "x-amz-copy-source cannot be read.")
	}
	bucket, key, _ := strings.Cut(strings.TrimSuffix(source, "?versionId=null"), "/")
	from, err := m.store.Open(bucket, key)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := copySourceAllows(r.Header, from.Info); err != nil {
		return err
	}
	offset, size := int64(0), from.Size
	if text := r.Header.Get("X-Amz-Copy-Source-Range"); text != "" {
		if offset, size, err = parseCopyRange(text, from.Size); err != nil {
			return err
		}
	}
	info, err := m.store.PutPart(m.bucket, m.key, id, n, io.NewSectionReader(from.File, offset, size), size, nil)
	if err != nil {
		return err
	}
	return writeXML(m.x, r, struct {
		XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CopyPartResult"`
		ETag         string
		LastModified string
	}{ETag: `"` + info.ETag + `"`, LastModified: wireTime(info.Modified)})
}

// copySourceAllows checks the conditions on the source of a copy.
func copySourceAllows(h http.Header, from *folder.Info) error {
	match, noneMatch := h.Get("X-Amz-Copy-Source-If-Match"), h.Get("X-Amz-Copy-Source-If-None-Match")
	since, errSince := http.ParseTime(h.Get("X-Amz-Copy-Source-If-Modified-Since"))
	unless, errUnless := http.ParseTime(h.Get("X-Amz-Copy-Source-If-Unmodified-Since"))
	modified := from.Modified.Truncate(time.Second)
	switch {
	case match != "" && !matches(match, from.ETag),
		noneMatch != "" && matches(noneMatch, from.ETag),
		noneMatch == "" && errSince == nil && !modified.After(since),
		match == "" && errUnless == nil && modified.After(unless):
		return gofakes3.ErrPreconditionFailed
	}
	return nil
}

// parseCopyRange reads "bytes=first-last".
func parseCopyRange(text string, size int64) (offset, length int64, err error) {
	spec, ok := strings.CutPrefix(text, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || !dash || err1 != nil || err2 != nil || from < 0 || to < from {
		return 0, 0, newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "x-amz-copy-source-range must be bytes=first-last.")
	}
	if to >= size {
		return 0, 0, newFault(http.StatusRequestedRangeNotSatisfiable, gofakes3.ErrInvalidRange, "The source has %d bytes.", size)
	}
	return from, to - from + 1, nil
}

type initiator struct{ ID, DisplayName string }

type uploadXML struct {
	Key              string
	UploadID         string `xml:"UploadId"`
	Initiator, Owner initiator
	StorageClass     string
	Initiated        string
}

type prefixXML struct{ Prefix string }

func (m *multipart) listUploads(r *http.Request) error {
	if there, err := m.store.BucketExists(m.bucket); err != nil || !there {
		return errors.Join(folder.ErrNoBucket, err)
	}
	limit, err := m.limit("max-uploads")
	if err != nil {
		return err
	}
	uploads, err := m.store.Uploads(m.bucket)
	if err != nil {
		return err
	}
	wire := func(s string) string { return s }
	if m.query.Get("encoding-type") == "url" {
		wire = escapePath
	}
	prefix, delimiter := m.query.Get("prefix"), m.query.Get("delimiter")
	keyMarker, idMarker := m.query.Get("key-marker"), m.query.Get("upload-id-marker")
	out := struct {
		XMLName                          xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListMultipartUploadsResult"`
		Bucket, KeyMarker, NextKeyMarker string   `xml:",omitempty"`
		UploadIDMarker                   string   `xml:"UploadIdMarker,omitempty"`
		NextUploadIDMarker               string   `xml:"NextUploadIdMarker,omitempty"`
		Prefix, Delimiter, EncodingType  string   `xml:",omitempty"`
		MaxUploads                       int
		IsTruncated                      bool
		Upload                           []uploadXML
		CommonPrefixes                   []prefixXML
	}{
		Bucket: m.bucket, KeyMarker: wire(keyMarker), UploadIDMarker: idMarker, Prefix: wire(prefix),
		Delimiter: wire(delimiter), EncodingType: m.query.Get("encoding-type"), MaxUploads: limit,
	}
	pastMarker := idMarker == ""
	rolled := ""
	for _, u := range uploads {
		rest, ok := strings.CutPrefix(u.Key, prefix)
		if !ok || u.Key < keyMarker || u.Key == keyMarker && keyMarker != "" && idMarker == "" {
			continue
		}
		if u.Key == keyMarker && !pastMarker {
			pastMarker = u.ID == idMarker
			continue
		}
		common := ""
		if i := strings.Index(rest, delimiter); delimiter != "" && i >= 0 {
			common = prefix + rest[:i+len(delimiter)]
		}
		if common != "" && (common == rolled || common == keyMarker) {
			continue
		}
		if len(out.Upload)+len(out.CommonPrefixes) == limit {
			out.IsTruncated = true
			break
		}
		if common != "" {
			rolled = common
			out.CommonPrefixes = append(out.CommonPrefixes, prefixXML{wire(common)})
			out.NextKeyMarker, out.NextUploadIDMarker = wire(common), ""
			continue
		}
		out.Upload = append(out.Upload, uploadXML{Key: wire(u.Key), UploadID: u.ID, StorageClass: "STANDARD", Initiated: wireTime(u.Started)})
		out.NextKeyMarker, out.NextUploadIDMarker = wire(u.Key), u.ID
	}
	if !out.IsTruncated {
		out.NextKeyMarker, out.NextUploadIDMarker = "", ""
	}
	return writeXML(m.x, r, out)
}

func (m *multipart) limit(name string) (int, error) {
	text := m.query.Get(name)
	if text == "" {
		return maxListed, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "%s must be 0 to %d.", name, maxListed)
	}
	return min(n, maxListed), nil
}

type partXML struct {
	PartNumber   int
	LastModified string
	ETag         string
	Size         int64
}

func (m *multipart) listParts(r *http.Request, id string) error {
	limit, err := m.limit("max-parts")
	if err != nil {
		return err
	}
	after := 0
	if text := m.query.Get("part-number-marker"); text != "" {
		if after, err = strconv.Atoi(text); err != nil || after < 0 {
			return newFault(http.StatusBadRequest, gofakes3.ErrInvalidArgument, "part-number-marker must be a number.")
		}
	}
	parts, more, err := m.store.Parts(m.bucket, m.key, id, after, limit)
	if err != nil {
		return err
	}
	out := struct {
		XMLName              xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListPartsResult"`
		Bucket, Key          string
		UploadID             string `xml:"UploadId"`
		Initiator, Owner     initiator
		StorageClass         string
		PartNumberMarker     int
		NextPartNumberMarker int
		MaxParts             int
		IsTruncated          bool
		Part                 []partXML
	}{Bucket: m.bucket, Key: m.key, UploadID: id, StorageClass: "STANDARD", PartNumberMarker: after, MaxParts: limit, IsTruncated: more}
	for _, p := range parts {
		out.NextPartNumberMarker = p.Number
		out.Part = append(out.Part, partXML{PartNumber: p.Number, LastModified: wireTime(p.Modified), ETag: `"` + p.ETag + `"`, Size: p.Size})
	}
	return writeXML(m.x, r, out)
}

func (m *multipart) complete(r *http.Request, id string) error {
	body, err := io.ReadAll(io.LimitReader(m.x.payload, maxXML))
	if err != nil {
		return err
	}
	var in struct {
		Part []struct {
			PartNumber int
			ETag       string
		}
	}
	if err := xml.Unmarshal(body, &in); err != nil {
		return newFault(http.StatusBadRequest, gofakes3.ErrMalformedXML, "The list of parts cannot be read: %v.", err)
	}
	parts := make([]folder.Part, len(in.Part))
	for i, p := range in.Part {
		parts[i] = folder.Part{Number: p.PartNumber, ETag: strings.Trim(p.ETag, `"`)}
	}
	info, err := m.store.CompleteUpload(r.Context(), m.bucket, m.key, id, parts, m.x.check)
	if err != nil {
		return err
	}
	return writeXML(m.x, r, struct {
		XMLName                     xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUploadResult"`
		Location, Bucket, Key, ETag string
	}{
		Location: "http://" + r.Host + escapePath("/"+m.bucket+"/"+m.key),
		Bucket:   m.bucket, Key: m.key, ETag: `"` + info.ETag + `"`,
	})
}

// wireTime is a time as S3 writes it in XML.
func wireTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
