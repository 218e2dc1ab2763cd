package embedded

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// chunkReader takes data out of the "aws-chunked" encoding:
//
//	<hex size>[;chunk-signature=<hex>]\r\n <data> \r\n … 0[;chunk-signature=<hex>]\r\n
//	[<name>:<value>\r\n …] [x-amz-trailer-signature:<hex>\r\n] \r\n
//
// Each signature covers its chunk and the signature before it, as described at
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html and
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
type chunkReader struct {
	in       *bufio.Reader
	signed   *signature // nil when chunks are not signed
	trailers bool

	left    int64 // bytes of the chunk not read yet
	open    bool  // within a chunk
	ended   bool  // the chunk of size 0 was read
	claimed string
	before  string // the signature before the chunk's
	sum     hash.Hash
	trailer map[string]string // by canonical name
}

const (
	chunkBuffer = 32 << 10
	maxTrailers = 16
)

var chunkBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, chunkBuffer) }}

func newChunkReader(body io.Reader, signed *signature, trailers bool) *chunkReader {
	c := &chunkReader{in: chunkBuffers.Get().(*bufio.Reader), signed: signed, trailers: trailers, trailer: map[string]string{}}
	c.in.Reset(body)
	if signed != nil {
		c.before, c.sum = signed.value, sha256.New()
	}
	return c
}

// release gives the buffer back; the reader is of no use afterwards.
func (c *chunkReader) release() {
	c.in.Reset(nil)
	chunkBuffers.Put(c.in)
}

func badChunk(what string) error {
	return badRequest(codeIncompleteBody, "The body's chunks cannot be read: %s.", what)
}

func badChunkSignature() error {
	return newError(http.StatusForbidden, codeSignatureMismatch, "The signature of a chunk does not fit it.")
}

// Read delivers data; io.EOF after the last chunk.
func (c *chunkReader) Read(b []byte) (int, error) {
	if !c.open {
		if err := c.next(); err != nil {
			return 0, err
		}
		if c.ended {
			return 0, io.EOF
		}
	}
	if int64(len(b)) > c.left {
		b = b[:c.left]
	}
	n, err := c.in.Read(b)
	if c.sum != nil {
		c.sum.Write(b[:n])
	}
	c.left -= int64(n)
	if c.left > 0 {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return n, err
	}
	return n, c.endChunk()
}

// next reads a chunk's head.
func (c *chunkReader) next() error {
	if c.ended {
		return nil
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	size, extension, _ := strings.Cut(line, ";")
	c.left, err = strconv.ParseInt(size, 16, 64)
	if err != nil || c.left < 0 {
		return badChunk("a size is not a hexadecimal number")
	}
	if c.signed != nil {
		var ok bool
		if c.claimed, ok = strings.CutPrefix(extension, "chunk-signature="); !ok {
			return badChunkSignature()
		}
	}
	if c.left == 0 {
		c.ended = true
		return c.verifyChunk()
	}
	c.open = true
	return nil
}

// endChunk reads what ends a chunk's data.
func (c *chunkReader) endChunk() error {
	c.open = false
	end, err := c.line()
	if err != nil {
		return err
	}
	if end != "" {
		return badChunk("a chunk is longer than its size")
	}
	return c.verifyChunk()
}

func (c *chunkReader) verifyChunk() error {
	if c.signed == nil {
		return nil
	}
	want := c.signed.sign(algorithm+"-PAYLOAD", c.before, emptySHA256, hex.EncodeToString(c.sum.Sum(nil)))
	if subtle.ConstantTimeCompare([]byte(want), []byte(c.claimed)) != 1 {
		return badChunkSignature()
	}
	c.before = want
	c.sum.Reset()
	return nil
}

// finish reads what follows the data: the chunk of size 0 and the trailer.
func (c *chunkReader) finish() error {
	if c.open {
		return badChunk("there is more data than announced")
	}
	if err := c.next(); err != nil {
		return err
	}
	if !c.ended {
		return badChunk("there is more data than announced")
	}
	if !c.trailers {
		return nil
	}
	return c.readTrailer()
}

func (c *chunkReader) readTrailer() error {
	var signed strings.Builder // the lines as they are signed
	for range maxTrailers {
		line, err := c.line()
		if err != nil && err != io.ErrUnexpectedEOF {
			return err
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case err != nil || line == "" && c.signed == nil:
			if c.signed != nil {
				return err // the trailer's signature never came
			}
			return nil
		case line == "": // some clients put one before the signature
		case !ok:
			return badRequest(codeMalformedTrailer, "A line of the trailer has no colon.")
		case c.signed != nil && strings.EqualFold(name, "x-amz-trailer-signature"):
			sum := sha256.Sum256([]byte(signed.String()))
			want := c.signed.sign(algorithm+"-TRAILER", c.before, hex.EncodeToString(sum[:]))
			if subtle.ConstantTimeCompare([]byte(want), []byte(value)) != 1 {
				return badChunkSignature()
			}
			return nil
		default:
			c.trailer[http.CanonicalHeaderKey(name)] = value
			signed.WriteString(strings.ToLower(name) + ":" + value + "\n")
		}
	}
	return badRequest(codeMalformedTrailer, "The trailer has more than %d lines.", maxTrailers)
}

// line reads a line without its end.
func (c *chunkReader) line() (string, error) {
	raw, err := c.in.ReadSlice('\n')
	switch {
	case err == bufio.ErrBufferFull:
		return "", badChunk("a line is too long")
	case err == io.EOF:
		return "", io.ErrUnexpectedEOF
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}
