package embedded

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
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

	md5     hash.Hash // nil when the request does not give it
	wantMD5 []byte

	checksum hash.Hash       // nil when the body gets none
	wanted   folder.Checksum // its Value is "" when none is given, or when the trailer gives it
	trailing bool            // the trailer gives it

	deadline func(time.Duration) // allows a read that long; 0: any time
}

const (
	decodedHeader = "X-Amz-Decoded-Content-Length"
	trailerHeader = "X-Amz-Trailer"
)

// newPayload takes over the body of a signed request. An object's data gets a
// checksum though the client gives none.
func newPayload(r *http.Request, s *signature, about sums, deadline func(time.Duration)) (*payload, *apiError) {
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
			return nil, badRequest(codeInvalidRequest,
				"x-amz-content-sha256 must be a SHA-256 in hex, UNSIGNED-PAYLOAD or a streaming signature with HMAC.")
		}
		if p.size != 0 || s.payload != emptySHA256 {
			p.sha256, p.wantSHA256 = sha256.New(), strings.ToLower(s.payload)
		}
	}
	if p.chunks != nil {
		size, err := strconv.ParseInt(r.Header.Get(decodedHeader), 10, 64)
		if err != nil || size < 0 {
			return nil, newError(http.StatusLengthRequired, codeMissingLength, "You must provide the Content-Length HTTP header: x-amz-decoded-content-length is missing.")
		}
		p.source, p.size = p.chunks, size
	}
	if p.size < 0 {
		return nil, newError(http.StatusLengthRequired, codeMissingLength, "You must provide the Content-Length HTTP header.")
	}
	p.left = p.size
	if e := p.expectMD5(r.Header); e != nil {
		return nil, e
	}
	if about == sumOfObject {
		return p, nil
	}
	return p, p.expectChecksum(r.Header, trailer, about == sumOfData)
}

func (p *payload) expectMD5(h http.Header) *apiError {
	values, there := h["Content-Md5"]
	if !there {
		return nil
	}
	var err error
	if p.wantMD5, err = base64.StdEncoding.DecodeString(values[0]); err != nil || len(p.wantMD5) != md5.Size {
		return badRequest(codeInvalidDigest, "The Content-MD5 you specified is not valid.")
	}
	p.md5 = md5.New()
	return nil
}

// expectChecksum finds the checksum that a header gives or announces for the
// trailer.
func (p *payload) expectChecksum(h http.Header, trailer string, isData bool) *apiError {
	given, err := headerChecksum(h)
	if err != nil {
		e, _ := errorFor(err)
		return e
	}
	p.wanted = given
	sdk := strings.ToUpper(h.Get("X-Amz-Sdk-Checksum-Algorithm"))
	for name := range strings.SplitSeq(trailer, ",") {
		algorithm, ok := strings.CutPrefix(http.CanonicalHeaderKey(strings.TrimSpace(name)), checksumPrefix)
		if !ok {
			continue
		}
		if p.wanted.Algorithm != "" {
			return badRequest(codeInvalidRequest, "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		p.wanted.Algorithm, p.trailing = strings.ToUpper(algorithm), true
	}
	switch {
	case p.wanted.Algorithm != "":
		if sdk != "" && sdk != p.wanted.Algorithm {
			return badRequest(codeInvalidRequest, "Value for x-amz-sdk-checksum-algorithm header is invalid.")
		}
	case !isData:
		return nil
	case checksumType(sdk).IsSet():
		p.wanted.Algorithm = sdk
	default:
		p.wanted.Algorithm = defaultChecksum
	}
	if p.checksum = newChecksum(p.wanted.Algorithm); p.checksum == nil {
		return badRequest(codeInvalidRequest, "The checksum algorithm %s is not supported.", p.wanted.Algorithm)
	}
	return nil
}

// useChecksum has the body's checksum computed by this algorithm, unless the
// client gave one.
func (p *payload) useChecksum(algorithm string) *apiError {
	switch {
	case p.wanted.Algorithm == algorithm || algorithm == "":
		return nil
	case p.wanted.Value != "" || p.trailing:
		return badRequest(codeInvalidRequest, "Checksum Type mismatch occurred, expected checksum Type: %s, actual checksum Type: %s.", algorithm, p.wanted.Algorithm)
	}
	p.wanted.Algorithm, p.checksum = algorithm, newChecksum(algorithm)
	return nil
}

// Sum is the checksum of the body, which was read to its end; the zero one when
// it has none.
func (p *payload) Sum() folder.Checksum {
	if p.checksum == nil {
		return folder.Checksum{}
	}
	return folder.Checksum{Algorithm: p.wanted.Algorithm, Value: base64.StdEncoding.EncodeToString(p.checksum.Sum(nil))}
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
	if p.md5 != nil {
		p.md5.Write(b[:n])
	}
	if p.checksum != nil {
		p.checksum.Write(b[:n])
	}
	p.left -= int64(n)
	switch {
	case err != nil && err != io.EOF:
		p.failure = bodyError(err)
	case err == io.EOF && p.left > 0:
		p.failure = badRequest(codeIncompleteBody, "The body ended %d bytes early.", p.left)
	case p.left == 0:
		p.failure = p.Verify()
	}
	return n, p.failure
}

// bodyError says what kept a body from arriving.
func bodyError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return badRequest(codeRequestTimeout, "Nothing of the body arrived for %s.", bodyTimeout)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return badRequest(codeIncompleteBody, "The connection ended before the body did.")
	}
	return err
}

// Verify returns nil when the body was delivered whole and is what the request
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
		return badRequest(codeIncompleteBody, "The body ended %d bytes early.", p.left)
	}
	if p.sha256 != nil && hex.EncodeToString(p.sha256.Sum(nil)) != p.wantSHA256 {
		return badRequest(codePayloadMismatch, "The provided 'x-amz-content-sha256' header does not match what was computed.")
	}
	if p.chunks != nil {
		if err := p.chunks.finish(); err != nil {
			return bodyError(err)
		}
	}
	if p.md5 != nil && !bytes.Equal(p.md5.Sum(nil), p.wantMD5) {
		return badRequest(codeBadDigest, "The Content-MD5 you specified did not match what we received.")
	}
	if p.chunks != nil {
		for name := range p.chunks.trailer {
			if strings.HasPrefix(name, checksumPrefix) && !(p.trailing && name == checksumHeader(p.wanted.Algorithm)) {
				return badRequest(codeMalformedTrailer, "The trailer's %s was not announced in x-amz-trailer.", strings.ToLower(name))
			}
		}
	}
	if p.trailing {
		if p.wanted.Value = p.chunks.trailer[checksumHeader(p.wanted.Algorithm)]; p.wanted.Value == "" {
			return badRequest(codeMalformedTrailer, "The trailer has no %s.", strings.ToLower(checksumHeader(p.wanted.Algorithm)))
		}
		if err := checkChecksum(p.wanted); err != nil {
			return err
		}
	}
	if p.wanted.Value != "" && p.wanted.Value != p.Sum().Value {
		return badRequest(codeBadDigest, "The %s you specified did not match the calculated checksum.", p.wanted.Algorithm)
	}
	return nil
}

// bodyTimeout is how long a body may stand still.
const bodyTimeout = 2 * time.Minute
