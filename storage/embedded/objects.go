package embedded

import (
	"cmp"
	"context"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// maxS3Copy is the largest object that S3 copies in one request.
const maxS3Copy = 5 << 30

// smallObject is what is sent in one write together with the headers.
const smallObject = 32 << 10

// getObject answers GET and HEAD.
func (h *handler) getObject(r *request) error {
	if r.params.has("partNumber") { // told also where there is no object
		if _, err := r.partNumber(); err != nil {
			return err
		}
	}
	o, err := h.store.Open(r.bucket, r.key)
	if err != nil {
		return err
	}
	defer o.Close()
	if e := checkRead(r.Header, "", o.Info); e != nil {
		r.w.Header().Set("ETag", quote(o.ETag))
		r.w.Header().Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
		return e
	}
	part, err := partOf(r, o.Info)
	if err != nil {
		r.w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(o.Size, 10))
		return err
	}
	header := r.w.Header()
	writeAttributes(header, o.Info)
	for _, p := range r.params {
		if name, ok := strings.CutPrefix(p[0], "response-"); ok {
			header.Set(name, p[1])
		}
	}
	if strings.EqualFold(r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") && (part == nil || part.size == o.Size) {
		setChecksum(header, o.Checksum, true)
	} else if strings.EqualFold(r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") && r.params.has("partNumber") {
		if err := setPartChecksum(r, o); err != nil {
			return err
		}
	}
	status := http.StatusOK
	if part == nil {
		part = &byteRange{0, o.Size}
	} else {
		status = http.StatusPartialContent
		if part.size > 0 {
			header.Set("Content-Range", "bytes "+strconv.FormatInt(part.offset, 10)+"-"+strconv.FormatInt(part.offset+part.size-1, 10)+"/"+strconv.FormatInt(o.Size, 10))
		}
	}
	header.Set("Content-Length", strconv.FormatInt(part.size, 10))
	if r.Method == http.MethodHead {
		r.w.WriteHeader(status)
		return nil
	}
	if part.size <= smallObject {
		data := make([]byte, part.size)
		if _, err := o.ReadAt(data, part.offset); err != nil {
			return err
		}
		r.w.WriteHeader(status)
		_, _ = r.w.Write(data) // a client that went away needs no answer
		return nil
	}
	r.w.WriteHeader(status)
	return o.CopyTo(r.w, part.offset, part.size, sendPiece, r.w.writeDeadline)
}

// setPartChecksum tells the checksum of the part that is asked for.
func setPartChecksum(r *request, o *folder.Object) error {
	number, err := r.partNumber()
	if err != nil {
		return err
	}
	parts, _, err := o.PartInfos(number-1, 1)
	if err != nil || len(parts) == 0 || parts[0].Checksum.Algorithm == "" {
		return err
	}
	setChecksum(r.w.Header(), parts[0].Checksum, false)
	r.w.Header().Set("X-Amz-Checksum-Type", typeOf(o.Checksum))
	return nil
}

// partOf returns the part of an object that is asked for; nil for all of it.
func partOf(r *request, info *folder.Info) (*byteRange, error) {
	spec := r.Header.Get("Range")
	if !r.params.has("partNumber") {
		if condition := r.Header.Get("If-Range"); spec == "" || condition != "" && !currentFor(condition, info) {
			return nil, nil
		}
		part, e := parseRange(spec, info.Size)
		if e != nil {
			return nil, e
		}
		return part, nil
	}
	number, err := r.partNumber()
	if err != nil {
		return nil, err
	}
	if spec != "" {
		return nil, badRequest(codeInvalidRequest, "Cannot specify both Range header and partNumber query parameter.")
	}
	if len(info.Parts) == 0 {
		if number == 1 {
			return &byteRange{0, info.Size}, nil
		}
	} else {
		r.w.Header().Set("X-Amz-Mp-Parts-Count", strconv.Itoa(partsCount(info)))
	}
	offset, before := int64(0), 0
	for _, run := range info.Parts {
		first := run.First
		if first == 0 { // of an object that was written before numbers were kept
			first = before + 1
		}
		if number >= first && number < first+run.Count {
			return &byteRange{offset + int64(number-first)*run.Size, run.Size}, nil
		}
		offset += int64(run.Count) * run.Size
		before += run.Count
	}
	return nil, newError(http.StatusRequestedRangeNotSatisfiable, codeInvalidPartNumber, "The requested partnumber is not satisfiable.")
}

// currentFor reports whether an If-Range header means an object as it is now
// (RFC 9110, section 13.1.5).
func currentFor(condition string, info *folder.Info) bool {
	if strings.HasPrefix(condition, `"`) {
		return condition == quote(info.ETag)
	}
	t, err := http.ParseTime(condition)
	return err == nil && info.Modified.Truncate(time.Second).Equal(t)
}

func (h *handler) putObject(r *request) error {
	attrs, err := attributesOf(r.Header)
	if err != nil {
		return err
	}
	if err := h.expect(r); err != nil {
		return err
	}
	p := r.payload
	info, err := h.store.Put(r.bucket, r.key, p, p.size, folder.Info{Attrs: attrs}, func(info *folder.Info) error {
		info.Checksum = p.Sum()
		return p.Verify()
	}, headerCheck(r.Header))
	if err != nil {
		return err
	}
	r.w.Header().Set("ETag", quote(info.ETag))
	setChecksum(r.w.Header(), info.Checksum, true)
	return nil
}

// copySource opens the object that a request copies from, and returns its bucket.
func (h *handler) copySource(r *request) (*folder.Object, string, error) {
	source, query, _ := strings.Cut(r.Header.Get("X-Amz-Copy-Source"), "?")
	path, err := url.QueryUnescape(source) // to S3, a + is a space here
	if err != nil {
		return nil, "", badRequest(codeInvalidArgument, "The value of x-amz-copy-source cannot be read.")
	}
	bucket, key, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok || key == "" {
		return nil, "", badRequest(codeInvalidArgument, "Copy Source must mention the source bucket and key: sourcebucket/sourcekey.")
	}
	if query != "" && query != "versionId=null" {
		return nil, "", badRequest(codeInvalidArgument, "Invalid version id specified.")
	}
	o, err := h.store.Open(bucket, key)
	if err != nil {
		return nil, "", err
	}
	if err := checkCopySource(r.Header, o.Info); err != nil {
		o.Close()
		return nil, "", err
	}
	return o, bucket, nil
}

type copyXML struct {
	XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CopyObjectResult"`
	LastModified string
	ETag         string
	ChecksumType string `xml:",omitempty"`
	checksumXML
}

// directive reads a header that says whether to copy or replace.
func directive(r *request, name string) (replace bool, err error) {
	switch value := r.Header.Get(name); value {
	case "", "COPY":
		return false, nil
	case "REPLACE":
		return true, nil
	default:
		return false, badRequest(codeInvalidArgument, "Unknown directive: the value of %s must be COPY or REPLACE.", strings.ToLower(name))
	}
}

// checksumOf computes an object's checksum from its data.
func checksumOf(ctx context.Context, o *folder.Object, algorithm string) (folder.Checksum, error) {
	sum := newChecksum(algorithm)
	for offset := int64(0); offset < o.Size; offset += sendPiece {
		if err := ctx.Err(); err != nil {
			return folder.Checksum{}, err
		}
		if _, err := io.Copy(sum, io.NewSectionReader(o, offset, min(sendPiece, o.Size-offset))); err != nil {
			return folder.Checksum{}, err
		}
	}
	return folder.Checksum{Algorithm: algorithm, Value: encodeSum(sum)}, nil
}

// touchHeaders let an object be copied to itself even when their values are those it has:
// that is how its time is set, or all that a bucket holds encrypted.
var touchHeaders = []string{classHeader, "X-Amz-Server-Side-Encryption", redirectHeader}

func (h *handler) copyObject(r *request) error {
	replaceMeta, err := directive(r, "X-Amz-Metadata-Directive")
	if err != nil {
		return err
	}
	replaceTags, err := directive(r, "X-Amz-Tagging-Directive")
	if err != nil {
		return err
	}
	algorithm := strings.ToUpper(r.Header.Get("X-Amz-Checksum-Algorithm"))
	if algorithm != "" && !checksumType(algorithm).IsSet() {
		return badRequest(codeInvalidRequest, "The checksum algorithm %s is not supported.", algorithm)
	}
	from, bucket, err := h.copySource(r)
	if err != nil {
		return err
	}
	defer from.Close()
	attrs, err := attributesOf(r.Header)
	if err != nil {
		return err
	}
	same := bucket == r.bucket && from.Key == r.key
	otherSum := algorithm != "" && algorithm != from.Checksum.Algorithm
	if same && !replaceMeta && !replaceTags && !otherSum && !slices.ContainsFunc(touchHeaders, func(name string) bool { return r.Header.Get(name) != "" }) {
		return badRequest(codeInvalidRequest, "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
	}
	tags := attrs[taggingHeader]
	if !replaceMeta {
		given := attrs
		attrs = maps.Clone(from.Attrs)
		for _, name := range []string{redirectHeader, classHeader} { // are never copied
			delete(attrs, name)
			if value := given[name]; value != "" {
				attrs[name] = value
			}
		}
	}
	delete(attrs, taggingHeader)
	if !replaceTags {
		tags = from.Attrs[taggingHeader]
	}
	if tags != "" {
		attrs[taggingHeader] = tags
	}
	var sum folder.Checksum // that of the source
	// A copy has no parts to S3: its checksum is that of the whole. S3 copies at most 5 GiB;
	// what is larger keeps its checksum, so that the client need not wait for it to be read.
	if otherSum || from.Checksum.Composite && from.Size <= maxS3Copy {
		if sum, err = checksumOf(r.Context(), from, cmp.Or(algorithm, from.Checksum.Algorithm)); err != nil {
			return err
		}
	}
	info, err := h.store.Copy(r.Context(), from, r.bucket, r.key, folder.Info{Attrs: attrs, Checksum: sum}, headerCheck(r.Header))
	if err != nil {
		return err
	}
	out := copyXML{LastModified: wireTime(info.Modified), ETag: quote(info.ETag), checksumXML: newChecksumXML(info.Checksum)}
	if info.Checksum.Algorithm != "" {
		out.ChecksumType = typeOf(info.Checksum)
	}
	return writeXML(r.w, r.Request, out)
}

func (h *handler) deleteObject(r *request) error {
	condition := deleteCondition{
		etag: r.Header.Get("If-Match"), modified: r.Header.Get("X-Amz-If-Match-Last-Modified-Time"), size: r.Header.Get("X-Amz-If-Match-Size"),
	}
	if _, err := h.store.StatBucket(r.bucket); err != nil {
		return err
	}
	err := h.store.Delete(r.Context(), r.bucket, []string{r.key}, func(_ string, current *folder.Info) error { return condition.check(current) })[0]
	if err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

type deletedXML struct {
	Key       string
	VersionID string `xml:"VersionId,omitempty"`
}

type deleteErrorXML struct {
	Key           string
	VersionID     string `xml:"VersionId,omitempty"`
	Code, Message string
}

const maxDeleted = 1000 // objects in one request

// deleteObjects deletes a list of objects.
func (h *handler) deleteObjects(r *request) error {
	var in struct {
		XMLName xml.Name `xml:"Delete"`
		Quiet   bool
		Objects []struct {
			Key              string
			VersionID        string `xml:"VersionId"`
			ETag             string
			LastModifiedTime string
			Size             string
		} `xml:"Object"`
	}
	if err := readXML(r, &in); err != nil {
		return err
	}
	if len(in.Objects) == 0 || len(in.Objects) > maxDeleted {
		return badRequest(codeMalformedXML, "1 to %d objects can be deleted at once.", maxDeleted)
	}
	if _, err := h.store.StatBucket(r.bucket); err != nil {
		return err
	}
	var out struct {
		XMLName xml.Name         `xml:"http://s3.amazonaws.com/doc/2006-03-01/ DeleteResult"`
		Deleted []deletedXML     `xml:",omitempty"`
		Error   []deleteErrorXML `xml:",omitempty"`
	}
	refuse := func(key, version string, err error) {
		e, known := errorFor(err)
		if !known && r.Context().Err() == nil {
			h.log.Error("a storage request failed", "method", r.Method, "path", r.URL.Path, "key", key, "error", err)
		}
		out.Error = append(out.Error, deleteErrorXML{key, version, e.code, e.message})
	}
	var keys, versions []string
	conditions := map[string][]deleteCondition{}
	for _, o := range in.Objects {
		if o.VersionID != "" && o.VersionID != "null" {
			refuse(o.Key, o.VersionID, newError(http.StatusNotFound, "NoSuchVersion", "The specified version does not exist."))
			continue
		}
		keys, versions = append(keys, o.Key), append(versions, o.VersionID)
		if c := (deleteCondition{o.ETag, o.LastModifiedTime, o.Size}); c != (deleteCondition{}) {
			conditions[o.Key] = append(conditions[o.Key], c)
		}
	}
	errs := h.store.Delete(r.Context(), r.bucket, keys, func(key string, current *folder.Info) error {
		for _, c := range conditions[key] {
			if err := c.check(current); err != nil {
				return err
			}
		}
		return nil
	})
	for i, err := range errs {
		switch {
		case err != nil:
			refuse(keys[i], versions[i], err)
		case !in.Quiet:
			out.Deleted = append(out.Deleted, deletedXML{keys[i], versions[i]})
		}
	}
	return writeXML(r.w, r.Request, out)
}

func (h *handler) getTagging(r *request) error {
	info, err := h.store.Stat(r.bucket, r.key)
	if err != nil {
		return err
	}
	return writeXML(r.w, r.Request, newTaggingXML(tagsOf(info)))
}

func (h *handler) putTagging(r *request) error {
	tags, err := r.readTags(maxObjectTags)
	if err != nil {
		return err
	}
	return h.changeTags(r, tags)
}

func (h *handler) deleteTagging(r *request) error {
	if err := h.changeTags(r, nil); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// changeTags gives an object other tags.
func (h *handler) changeTags(r *request, tags map[string]string) error {
	for {
		from, err := h.store.Open(r.bucket, r.key)
		if err != nil {
			return err
		}
		attrs := maps.Clone(from.Attrs)
		setTags(attrs, tags)
		overwritten := false
		_, err = h.store.Copy(r.Context(), from, r.bucket, r.key, folder.Info{Attrs: attrs}, func(current *folder.Info) error {
			if current == nil {
				return folder.ErrNoKey
			}
			if current.ETag != from.ETag || !current.Modified.Equal(from.Modified) {
				overwritten = true
				return preconditionFailed("of unchanged data")
			}
			return nil
		})
		from.Close()
		if !overwritten {
			return err
		}
	}
}

type objectPartXML struct {
	checksumXML
	PartNumber int
	Size       int64
}

type objectPartsXML struct {
	PartsCount           int // "TotalPartsCount" in the AWS SDKs
	PartNumberMarker     int
	NextPartNumberMarker int
	MaxParts             int
	IsTruncated          bool
	Part                 []objectPartXML
}

type attributesChecksumXML struct {
	checksumXML
	ChecksumType string
}

// getAttributes answers GetObjectAttributes.
func (h *handler) getAttributes(r *request) error {
	var asked []string
	for _, value := range r.Header.Values("X-Amz-Object-Attributes") {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.TrimSpace(name); name != "" {
				asked = append(asked, name)
			}
		}
	}
	if len(asked) == 0 {
		return badRequest(codeInvalidRequest, "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty")
	}
	for _, name := range asked {
		if !slices.Contains([]string{"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}, name) {
			return badRequest(codeInvalidArgument, "Invalid attribute name specified.")
		}
	}
	o, err := h.store.Open(r.bucket, r.key)
	if err != nil {
		return err
	}
	defer o.Close()
	var out struct {
		XMLName      xml.Name               `xml:"http://s3.amazonaws.com/doc/2006-03-01/ GetObjectAttributesResponse"`
		ETag         string                 `xml:",omitempty"`
		Checksum     *attributesChecksumXML `xml:",omitempty"`
		ObjectParts  *objectPartsXML        `xml:",omitempty"`
		StorageClass string                 `xml:",omitempty"`
		ObjectSize   *int64                 `xml:",omitempty"`
	}
	for _, name := range asked {
		switch name {
		case "ETag":
			out.ETag = o.ETag
		case "Checksum":
			if o.Checksum.Algorithm != "" {
				sum := o.Checksum
				sum.Value, _, _ = strings.Cut(sum.Value, "-") // S3 tells the number of parts elsewhere
				out.Checksum = &attributesChecksumXML{newChecksumXML(sum), typeOf(sum)}
			}
		case "StorageClass":
			out.StorageClass = classOf(o.Attrs)
		case "ObjectSize":
			out.ObjectSize = &o.Size
		case "ObjectParts":
			if out.ObjectParts, err = attributeParts(r, o); err != nil {
				return err
			}
		}
	}
	r.w.Header().Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	return writeXML(r.w, r.Request, out)
}

// attributeParts lists the parts of an object; nil when it was not uploaded in
// parts.
func attributeParts(r *request, o *folder.Object) (*objectPartsXML, error) {
	if len(o.Parts) == 0 {
		return nil, nil
	}
	number := func(header string, otherwise int) (int, error) {
		text := r.Header.Get(header)
		if text == "" {
			return otherwise, nil
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return 0, badRequest(codeInvalidArgument, "The value of %s must be a number.", strings.ToLower(header))
		}
		return n, nil
	}
	limit, err := number("X-Amz-Max-Parts", maxListed)
	if err != nil {
		return nil, err
	}
	after, err := number("X-Amz-Part-Number-Marker", 0)
	if err != nil {
		return nil, err
	}
	limit = min(limit, maxListed)
	parts, more, err := o.PartInfos(after, limit)
	if err != nil {
		return nil, err
	}
	x := &objectPartsXML{PartsCount: partsCount(o.Info), PartNumberMarker: after, NextPartNumberMarker: after, MaxParts: limit, IsTruncated: more}
	for _, p := range parts {
		x.Part = append(x.Part, objectPartXML{newChecksumXML(p.Checksum), p.Number, p.Size})
		x.NextPartNumberMarker = p.Number
	}
	return x, nil
}
