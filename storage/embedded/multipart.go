package embedded

import (
	"cmp"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// Multipart uploads, as described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateMultipartUpload.html
// and the pages it links.

// minPart is the least size of a part that is not the last one.
const minPart = 5 << 20

func (h *handler) createUpload(r *request) error {
	attrs, err := attributesOf(r.Header)
	if err != nil {
		return err
	}
	algorithm, composite, err := uploadChecksum(r.Header)
	if err != nil {
		return err
	}
	if err := h.expect(r); err != nil {
		return err
	}
	u, err := h.store.CreateUpload(folder.Upload{
		Bucket: r.bucket, Key: r.key, Attrs: attrs, ChecksumAlgorithm: algorithm, ChecksumComposite: composite,
		IfMatch: r.Header.Get("If-Match"), IfNoneMatch: r.Header.Get("If-None-Match"),
	})
	if err != nil {
		return err
	}
	if algorithm != "" {
		r.w.Header().Set("X-Amz-Checksum-Algorithm", algorithm)
		r.w.Header().Set("X-Amz-Checksum-Type", uploadChecksumType(u))
	}
	return writeXML(r.w, r.Request, struct {
		XMLName     xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ InitiateMultipartUploadResult"`
		Bucket, Key string
		UploadID    string `xml:"UploadId"`
	}{Bucket: r.bucket, Key: r.key, UploadID: u.ID})
}

// expect refuses, before the data is sent, what would be refused after it: the bucket is
// not there, or a condition does not hold. What counts is when the data is there.
func (h *handler) expect(r *request) error {
	check := headerCheck(r.Header)
	if check == nil {
		_, err := h.store.StatBucket(r.bucket)
		return err
	}
	info, err := h.store.Stat(r.bucket, r.key)
	if err != nil && !errors.Is(err, folder.ErrNoKey) {
		return err
	}
	return check(info)
}

// upload returns the upload that a request is about.
func (h *handler) upload(r *request) (*folder.Upload, error) {
	return h.store.GetUpload(r.bucket, r.key, r.query("uploadId"))
}

func (r *request) partNumber() (int, error) {
	n, err := strconv.Atoi(r.query("partNumber"))
	if err != nil || n < 1 || n > folder.MaxParts {
		return 0, badRequest(codeInvalidArgument, "Part number must be an integer between 1 and %d, inclusive", folder.MaxParts)
	}
	return n, nil
}

func (h *handler) putPart(r *request) error {
	number, err := r.partNumber()
	if err != nil {
		return err
	}
	u, err := h.upload(r)
	if err != nil {
		return err
	}
	p := r.payload
	if e := p.useChecksum(u.ChecksumAlgorithm); e != nil {
		return e
	}
	info, err := h.store.PutPart(u, number, p, p.size, func(info *folder.Info) error {
		info.Checksum = p.Sum()
		return p.Verify()
	})
	if err != nil {
		return err
	}
	setChecksum(r.w.Header(), info.Checksum, false)
	r.w.Header().Set("ETag", quote(info.ETag))
	return nil
}

func (h *handler) copyPart(r *request) error {
	number, err := r.partNumber()
	if err != nil {
		return err
	}
	u, err := h.upload(r)
	if err != nil {
		return err
	}
	from, _, err := h.copySource(r)
	if err != nil {
		return err
	}
	defer from.Close()
	part := byteRange{0, from.Size}
	if text := r.Header.Get("X-Amz-Copy-Source-Range"); text != "" {
		if part, err = parseCopyRange(text, from.Size); err != nil {
			return err
		}
	}
	algorithm := cmp.Or(u.ChecksumAlgorithm, defaultChecksum)
	sum := newChecksum(algorithm)
	body := io.TeeReader(contextReader{r.Context(), io.NewSectionReader(from, part.offset, part.size)}, sum)
	info, err := h.store.PutPart(u, number, body, part.size, func(info *folder.Info) error {
		info.Checksum = folder.Checksum{Algorithm: algorithm, Value: encodeSum(sum)}
		return nil
	})
	if err != nil {
		return err
	}
	return writeXML(r.w, r.Request, struct {
		XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CopyPartResult"`
		ETag         string
		LastModified string
		checksumXML
	}{ETag: quote(info.ETag), LastModified: wireTime(info.Modified), checksumXML: newChecksumXML(info.Checksum)})
}

// uploadChecksumType is the type of the checksum that an upload's object gets,
// where the client named one.
func uploadChecksumType(u *folder.Upload) string {
	if u.ChecksumAlgorithm == "" {
		return ""
	}
	return typeOf(folder.Checksum{Composite: u.ChecksumComposite})
}

// parseCopyRange reads "bytes=first-last".
func parseCopyRange(text string, size int64) (byteRange, error) {
	spec, ok := strings.CutPrefix(text, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || !dash || err1 != nil || err2 != nil || from < 0 || to < from {
		return byteRange{}, badRequest(codeInvalidArgument, "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy")
	}
	if to >= size {
		return byteRange{}, badRequest(codeInvalidArgument, "Range specified is not valid for source object of size: %d", size)
	}
	return byteRange{from, to - from + 1}, nil
}

type uploadXML struct {
	Key               string
	UploadID          string `xml:"UploadId"`
	Initiator, Owner  ownerXML
	StorageClass      string
	Initiated         string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
}

func (h *handler) listUploads(r *request) error {
	limit, _, err := r.number("max-uploads", maxListed, 0, maxListed)
	if err != nil {
		return err
	}
	l, err := r.listing()
	if err != nil {
		return err
	}
	uploads, err := h.store.Uploads(r.Context(), r.bucket)
	if err != nil {
		return err
	}
	keyMarker, idMarker := r.query("key-marker"), r.query("upload-id-marker")
	out := struct {
		XMLName                         xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListMultipartUploadsResult"`
		Bucket, KeyMarker               string
		UploadIDMarker                  string `xml:"UploadIdMarker"`
		NextKeyMarker                   string `xml:",omitempty"`
		NextUploadIDMarker              string `xml:"NextUploadIdMarker,omitempty"`
		Prefix, Delimiter, EncodingType string `xml:",omitempty"`
		MaxUploads                      int
		IsTruncated                     bool
		Upload                          []uploadXML
		CommonPrefixes                  []prefixXML
	}{
		Bucket: r.bucket, KeyMarker: l.wire(keyMarker), UploadIDMarker: idMarker, Prefix: l.wire(l.prefix),
		Delimiter: l.wire(l.delimiter), EncodingType: l.encoding, MaxUploads: limit,
	}
	// The marker is an upload that may have ended since: then all of its key are listed.
	pastMarker := !slices.ContainsFunc(uploads, func(u folder.Upload) bool { return u.Key == keyMarker && u.ID == idMarker })
	rolled := ""
	for _, u := range uploads {
		rest, ok := strings.CutPrefix(u.Key, l.prefix)
		if !ok || u.Key < keyMarker || u.Key == keyMarker && keyMarker != "" && idMarker == "" {
			continue
		}
		if u.Key == keyMarker && !pastMarker {
			pastMarker = u.ID == idMarker
			continue
		}
		common := ""
		if i := strings.Index(rest, l.delimiter); l.delimiter != "" && i >= 0 {
			common = l.prefix + rest[:i+len(l.delimiter)]
		}
		if common != "" && (common == rolled || common == keyMarker) {
			continue
		}
		if len(out.Upload)+len(out.CommonPrefixes) == limit {
			out.IsTruncated = limit > 0
			break
		}
		if common != "" {
			rolled = common
			out.CommonPrefixes = append(out.CommonPrefixes, prefixXML{l.wire(common)})
			out.NextKeyMarker, out.NextUploadIDMarker = l.wire(common), ""
			continue
		}
		out.Upload = append(out.Upload, uploadXML{
			Key: l.wire(u.Key), UploadID: u.ID, Initiator: owner, Owner: owner, StorageClass: classOf(u.Attrs), Initiated: wireTime(u.Started),
			ChecksumAlgorithm: u.ChecksumAlgorithm, ChecksumType: uploadChecksumType(&u),
		})
		out.NextKeyMarker, out.NextUploadIDMarker = l.wire(u.Key), u.ID
	}
	if !out.IsTruncated {
		out.NextKeyMarker, out.NextUploadIDMarker = "", ""
	}
	return writeXML(r.w, r.Request, out)
}

type partXML struct {
	PartNumber   int
	LastModified string
	ETag         string
	Size         int64
	checksumXML
}

func (h *handler) listParts(r *request) error {
	limit, _, err := r.number("max-parts", maxListed, 0, maxListed)
	if err != nil {
		return err
	}
	after, _, err := r.number("part-number-marker", 0, 0, folder.MaxParts)
	if err != nil {
		return err
	}
	u, err := h.upload(r)
	if err != nil {
		return err
	}
	parts, more, err := h.store.Parts(u, after, limit)
	if err != nil {
		return err
	}
	out := struct {
		XMLName              xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListPartsResult"`
		Bucket, Key          string
		UploadID             string `xml:"UploadId"`
		Initiator, Owner     ownerXML
		StorageClass         string
		PartNumberMarker     int
		NextPartNumberMarker int
		MaxParts             int
		IsTruncated          bool
		ChecksumAlgorithm    string `xml:",omitempty"`
		ChecksumType         string `xml:",omitempty"`
		Part                 []partXML
	}{
		Bucket: r.bucket, Key: r.key, UploadID: u.ID, Initiator: owner, Owner: owner, StorageClass: classOf(u.Attrs), PartNumberMarker: after,
		NextPartNumberMarker: after, MaxParts: limit, IsTruncated: more && limit > 0, ChecksumAlgorithm: u.ChecksumAlgorithm,
		ChecksumType: uploadChecksumType(u),
	}
	for _, p := range parts {
		out.NextPartNumberMarker = p.Number
		out.Part = append(out.Part, partXML{p.Number, wireTime(p.Modified), quote(p.ETag), p.Size, newChecksumXML(p.Checksum)})
	}
	return writeXML(r.w, r.Request, out)
}

func (h *handler) abortUpload(r *request) error {
	if err := h.store.AbortUpload(r.bucket, r.key, r.query("uploadId")); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// completion is what a client says of an upload that it completes.
type completion struct {
	size     int64 // -1 for none
	kind     string
	checksum folder.Checksum
	parts    []checksumXML
}

func readCompletion(h http.Header) (completion, error) {
	c := completion{size: -1, kind: strings.ToUpper(h.Get("X-Amz-Checksum-Type"))}
	var err error
	if text := h.Get("X-Amz-Mp-Object-Size"); text != "" {
		if c.size, err = strconv.ParseInt(text, 10, 64); err != nil || c.size < 0 {
			return c, badRequest(codeInvalidRequest, "The value of x-amz-mp-object-size must be a number of bytes.")
		}
	}
	if c.kind != "" && c.kind != typeComposite && c.kind != typeFullObject {
		return c, badRequest(codeInvalidRequest, "Value for x-amz-checksum-type header is invalid.")
	}
	c.checksum, err = headerChecksum(h)
	return c, err
}

// check compares what is to become an object with what the client says of it,
// and sets its checksum.
func (c completion) check(u *folder.Upload, parts []folder.Part, info *folder.Info) error {
	for i, p := range parts {
		if p.Size < minPart && i < len(parts)-1 {
			return badRequest(codeEntityTooSmall, "Your proposed upload is smaller than the minimum allowed size: part %d has %d bytes.", p.Number, p.Size)
		}
		if err := c.parts[i].check(p); err != nil {
			return err
		}
	}
	if c.size >= 0 && c.size != info.Size {
		return badRequest(codeInvalidRequest, "The provided 'x-amz-mp-object-size' header value %d does not match what was computed: %d", c.size, info.Size)
	}
	var err error
	if info.Checksum, err = objectChecksum(u, parts); err != nil {
		return err
	}
	if c.kind != "" && info.Checksum.Algorithm != "" && c.kind != typeOf(info.Checksum) {
		return badRequest(codeInvalidRequest, "The upload was created using the %s checksum mode. The complete request must use the same checksum mode.", typeOf(info.Checksum))
	}
	if want := c.checksum; want.Value != "" {
		if want.Algorithm != info.Checksum.Algorithm {
			return badRequest(codeInvalidRequest, "The upload was created with checksums of type %s, not %s.", info.Checksum.Algorithm, want.Algorithm)
		}
		got, _, _ := strings.Cut(info.Checksum.Value, "-")
		if given, _, _ := strings.Cut(want.Value, "-"); given != got {
			return badRequest(codeBadDigest, "The %s you specified did not match the calculated checksum.", want.Algorithm)
		}
	}
	return nil
}

func (h *handler) completeUpload(r *request) error {
	var in struct {
		XMLName xml.Name `xml:"CompleteMultipartUpload"`
		Part    []struct {
			PartNumber *int
			ETag       string
			checksumXML
		}
	}
	if err := readXML(r, &in); err != nil {
		return err
	}
	if len(in.Part) == 0 || len(in.Part) > folder.MaxParts {
		return badRequest(codeMalformedXML, "The XML you provided was not well-formed or did not validate against our published schema: it lists no parts, or more than %d.", folder.MaxParts)
	}
	want, err := readCompletion(r.Header)
	if err != nil {
		return err
	}
	parts := make([]folder.Part, len(in.Part))
	for i, p := range in.Part {
		switch {
		case p.PartNumber == nil || p.ETag == "":
			return badRequest(codeMalformedXML, "The XML you provided was not well-formed or did not validate against our published schema: a part needs PartNumber and ETag.")
		case *p.PartNumber < 1:
			return badRequest(codeInvalidArgument, "PartNumber must be >= 1")
		}
		parts[i] = folder.Part{Number: *p.PartNumber, ETag: strings.Trim(p.ETag, `"`)}
		want.parts = append(want.parts, p.checksumXML)
	}
	check := headerCheck(r.Header)
	var begun folder.Check
	info, err := h.store.CompleteUpload(r.Context(), r.bucket, r.key, r.query("uploadId"), parts,
		func(u *folder.Upload, parts []folder.Part, info *folder.Info) error {
			begun = writeCheck(u.IfMatch, u.IfNoneMatch)
			return want.check(u, parts, info)
		},
		func(current *folder.Info) error {
			for _, c := range []folder.Check{check, begun} {
				if c != nil {
					if err := c(current); err != nil {
						return err
					}
				}
			}
			return nil
		})
	if err != nil {
		return err
	}
	out := struct {
		XMLName                     xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUploadResult"`
		Location, Bucket, Key, ETag string
		ChecksumType                string `xml:",omitempty"`
		checksumXML
	}{
		Location: "http://" + r.Host + escapePath("/"+r.bucket+"/"+r.key), Bucket: r.bucket, Key: r.key, ETag: quote(info.ETag),
		checksumXML: newChecksumXML(info.Checksum),
	}
	if info.Checksum.Algorithm != "" {
		out.ChecksumType = typeOf(info.Checksum)
	}
	return writeXML(r.w, r.Request, out)
}
