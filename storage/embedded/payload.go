package embedded

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/minio/crc64nvme"
	"github.com/rclone/gofakes3"
)

// payload is a request's body as the client meant it: taken out of the chunks
// it may come in, and checked against what the request and its trailer say of
// it. The check is made when the last byte is delivered, and fails that Read;
// Verify makes it for a body that nobody read.
type payload struct {
	source  io.Reader
	chunks  *chunkReader // nil when the body comes as it is
	size    int64
	left    int64 // bytes not delivered yet
	checked bool
	failure error

	sha256     hash.Hash // nil when the request does not give it
	wantSHA256 string

	checksum     hash.Hash // nil when the request names none
	checksumName string    // "X-Amz-Checksum-Crc32c"
	checksumWant string    // base64; "" when it is in the trailer

	deadline func(time.Duration) // allows a read that long; 0: any time
}

const (
	checksumPrefix = "X-Amz-Checksum-"
	decodedHeader  = "X-Amz-Decoded-Content-Length"
	trailerHeader  = "X-Amz-Trailer"
)

// newChecksum returns S3's checksum algorithms by the end of their header.
func newChecksum(name string) hash.Hash {
	switch name {
	case "Crc32":
		return crc32.NewIEEE()
	case "Crc32c":
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case "Crc64nvme":
		return crc64nvme.New()
	case "Sha1":
		return sha1.New()
	case "Sha256":
		return sha256.New()
	}
	return nil
}

// newPayload takes over the body of a signed request, and makes the request
// look as if it had been sent plainly.
func newPayload(r *http.Request, s *signature, deadline func(time.Duration)) (*payload, *fault) {
	p := &payload{source: r.Body, size: r.ContentLength, deadline: deadline}
	var trailer string
	switch s.payload {
	case unsignedPayload:
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD":
		p.chunks = newChunkReader(r.Body, s, false)
	case "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER":
		p.chunks, trailer = newChunkReader(r.Body, s, true), r.Header.Get(trailerHeader)
	case "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
		p.chunks, trailer = newChunkReader(r.Body, nil, true), r.Header.Get(trailerHeader)
	default:
		if sum, err := hex.DecodeString(s.payload); err != nil || len(sum) != sha256.Size {
			return nil, newFault(http.StatusBadRequest, gofakes3.ErrInvalidRequest,
				"x-amz-content-sha256 must be a SHA-256 in hex, UNSIGNED-PAYLOAD or a streaming signature with HMAC.")
		}
		if p.size != 0 || s.payload != emptySHA256 {
			p.sha256, p.wantSHA256 = sha256.New(), strings.ToLower(s.payload)
		}
	}
	if p.chunks != nil {
		size, err := strconv.ParseInt(r.Header.Get(decodedHeader), 10, 64)
		if err != nil || size < 0 {
			return nil, newFault(http.StatusLengthRequired, gofakes3.ErrMissingContentLength, "The header x-amz-decoded-content-length is missing.")
		}
		p.source, p.size = p.chunks, size
		r.ContentLength = size
		r.Header.Set("Content-Length", strconv.FormatInt(size, 10))
		r.Header.Del(hashHeader)
		r.Header.Del(decodedHeader)
	}
	if p.size < 0 {
		return nil, newFault(http.StatusLengthRequired, gofakes3.ErrMissingContentLength, "The header content-length is missing.")
	}
	p.left = p.size
	if f := p.expectChecksum(r, trailer); f != nil {
		return nil, f
	}
	r.Body = io.NopCloser(p)
	return p, nil
}

// expectChecksum finds the checksum that a header gives or announces for the
// trailer.
func (p *payload) expectChecksum(r *http.Request, trailer string) *fault {
	if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") {
		return nil // it is the object's, not the body's
	}
	var names []string
	for name, values := range r.Header {
		end, ok := strings.CutPrefix(name, checksumPrefix)
		if !ok || end == "Type" || end == "Mode" || end == "Algorithm" {
			continue
		}
		names = append(names, name)
		p.checksumWant = strings.TrimSpace(values[0])
	}
	for name := range strings.SplitSeq(trailer, ",") {
		if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); strings.HasPrefix(name, checksumPrefix) {
			names = append(names, name)
		}
	}
	switch len(names) {
	case 0:
		return nil
	case 1:
	default:
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidRequest, "Give one checksum, not %d.", len(names))
	}
	p.checksumName = names[0]
	if p.checksum = newChecksum(strings.TrimPrefix(names[0], checksumPrefix)); p.checksum == nil {
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidRequest, "The checksum %s is not supported.", strings.ToLower(names[0]))
	}
	r.Header.Del(p.checksumName)
	return nil
}

// Read delivers the body's next bytes.
func (p *payload) Read(b []byte) (int, error) {
	if p.failure != nil {
		return 0, p.failure
	}
	if p.left == 0 {
		if err := p.Verify(); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	if int64(len(b)) > p.left {
		b = b[:p.left]
	}
	p.deadline(bodyTimeout)
	n, err := p.source.Read(b)
	if p.sha256 != nil {
		p.sha256.Write(b[:n])
	}
	if p.checksum != nil {
		p.checksum.Write(b[:n])
	}
	p.left -= int64(n)
	switch {
	case err != nil && err != io.EOF:
		p.failure = bodyFault(err)
	case err == io.EOF && p.left > 0:
		p.failure = newFault(http.StatusBadRequest, gofakes3.ErrIncompleteBody, "The body ended %d bytes early.", p.left)
	case p.left == 0:
		p.failure = p.Verify()
	}
	return n, p.failure
}

// bodyFault says what kept a body from arriving.
func bodyFault(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newFault(http.StatusBadRequest, codeRequestTimeout, "Nothing of the body arrived for %s.", bodyTimeout)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return newFault(http.StatusBadRequest, gofakes3.ErrIncompleteBody, "The connection ended before the body did.")
	}
	return err
}

// Verify answers nil when the body was delivered whole and is what the request
// says it is.
func (p *payload) Verify() error {
	if p.checked || p.failure != nil {
		return p.failure
	}
	p.checked = true
	p.failure = p.check()
	p.deadline(0) // what is done with the body may take its time
	return p.failure
}

func (p *payload) check() error {
	if p.left > 0 {
		return newFault(http.StatusBadRequest, gofakes3.ErrIncompleteBody, "The body ended %d bytes early.", p.left)
	}
	if p.sha256 != nil && hex.EncodeToString(p.sha256.Sum(nil)) != p.wantSHA256 {
		return newFault(http.StatusBadRequest, codePayloadMismatch, "The body does not have the SHA-256 that was signed.")
	}
	if p.chunks != nil {
		if err := p.chunks.finish(); err != nil {
			return bodyFault(err)
		}
	}
	if p.checksum == nil {
		return nil
	}
	if p.checksumWant == "" && p.chunks != nil {
		p.checksumWant = p.chunks.trailer[p.checksumName]
	}
	want, err := base64.StdEncoding.DecodeString(p.checksumWant)
	if err != nil || len(want) != p.checksum.Size() {
		return newFault(http.StatusBadRequest, gofakes3.ErrInvalidRequest, "The value of %s is not a checksum.", strings.ToLower(p.checksumName))
	}
	if !bytes.Equal(p.checksum.Sum(nil), want) {
		return newFault(http.StatusBadRequest, gofakes3.ErrBadDigest, "The body does not have the checksum of %s.", strings.ToLower(p.checksumName))
	}
	return nil
}

// bodyTimeout is how long a body may stand still.
const bodyTimeout = 2 * time.Minute
