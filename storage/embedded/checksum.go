package embedded

import (
	"encoding/base64"
	"hash"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// Checksums as described at
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html

const (
	checksumPrefix = "X-Amz-Checksum-"
	// defaultChecksum is what objects get whose client names none.
	defaultChecksum = "CRC64NVME"
	typeComposite   = "COMPOSITE"
	typeFullObject  = "FULL_OBJECT"
)

// checksumType returns an algorithm by S3's name for it, in any case; not set
// when there is none.
func checksumType(name string) minio.ChecksumType {
	switch strings.ToUpper(name) {
	case "CRC32":
		return minio.ChecksumCRC32
	case "CRC32C":
		return minio.ChecksumCRC32C
	case "CRC64NVME":
		return minio.ChecksumCRC64NVME
	case "SHA1":
		return minio.ChecksumSHA1
	case "SHA256":
		return minio.ChecksumSHA256
	case "SHA512":
		return minio.ChecksumSHA512
	case "MD5":
		return minio.ChecksumMD5
	case "XXHASH64":
		return minio.ChecksumXXHash64
	case "XXHASH3":
		return minio.ChecksumXXHash3
	case "XXHASH128":
		return minio.ChecksumXXHash128
	}
	return minio.ChecksumNone
}

// newChecksum returns an algorithm's hash; nil when there is none.
func newChecksum(name string) hash.Hash {
	t := checksumType(name)
	if !t.IsSet() {
		return nil
	}
	return t.Hasher()
}

func checksumHeader(algorithm string) string {
	return http.CanonicalHeaderKey(checksumPrefix + algorithm)
}

// headerChecksum returns the checksum that a request's headers give; the zero
// one when there is none.
func headerChecksum(h http.Header) (folder.Checksum, error) {
	var found folder.Checksum
	for name, values := range h {
		algorithm, ok := strings.CutPrefix(name, checksumPrefix)
		if !ok || algorithm == "Type" || algorithm == "Mode" || algorithm == "Algorithm" {
			continue
		}
		if found.Algorithm != "" {
			return found, badRequest(codeInvalidRequest, "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		found = folder.Checksum{Algorithm: strings.ToUpper(algorithm), Value: strings.TrimSpace(values[0])}
	}
	if found.Algorithm == "" {
		return found, nil
	}
	return found, checkChecksum(found)
}

// checkChecksum refuses a checksum that cannot be one of its algorithm.
func checkChecksum(c folder.Checksum) error {
	sum := newChecksum(c.Algorithm)
	if sum == nil {
		return badRequest(codeInvalidRequest, "The checksum algorithm %s is not supported.", c.Algorithm)
	}
	digest, _, _ := strings.Cut(c.Value, "-") // of a composite one
	if raw, err := base64.StdEncoding.DecodeString(digest); err != nil || len(raw) != sum.Size() {
		return badRequest(codeInvalidRequest, "Value for %s header is invalid.", strings.ToLower(checksumHeader(c.Algorithm)))
	}
	return nil
}

// setChecksum tells a client an object's or part's checksum.
func setChecksum(h http.Header, c folder.Checksum, withType bool) {
	if c.Algorithm == "" {
		return
	}
	h.Set(checksumHeader(c.Algorithm), c.Value)
	if withType {
		h.Set("X-Amz-Checksum-Type", typeOf(c))
	}
}

func typeOf(c folder.Checksum) string {
	if c.Composite {
		return typeComposite
	}
	return typeFullObject
}

// checksumXML holds a checksum in one of the elements that documents have for it.
type checksumXML struct {
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumMD5       string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
	ChecksumSHA512    string `xml:",omitempty"`
	ChecksumXXHASH64  string `xml:",omitempty"`
	ChecksumXXHASH3   string `xml:",omitempty"`
	ChecksumXXHASH128 string `xml:",omitempty"`
}

func newChecksumXML(c folder.Checksum) checksumXML {
	var x checksumXML
	if element := x.element(c.Algorithm); element != nil {
		*element = c.Value
	}
	return x
}

// element is where the checksum by an algorithm is; nil when there is none such.
func (x *checksumXML) element(algorithm string) *string {
	switch algorithm {
	case "CRC32":
		return &x.ChecksumCRC32
	case "CRC32C":
		return &x.ChecksumCRC32C
	case "CRC64NVME":
		return &x.ChecksumCRC64NVME
	case "MD5":
		return &x.ChecksumMD5
	case "SHA1":
		return &x.ChecksumSHA1
	case "SHA256":
		return &x.ChecksumSHA256
	case "SHA512":
		return &x.ChecksumSHA512
	case "XXHASH64":
		return &x.ChecksumXXHASH64
	case "XXHASH3":
		return &x.ChecksumXXHASH3
	case "XXHASH128":
		return &x.ChecksumXXHASH128
	}
	return nil
}

// check returns an error unless a document gives the checksum of a part, or none.
func (x checksumXML) check(p folder.Part) error {
	given := x
	if element := given.element(p.Checksum.Algorithm); element != nil {
		*element = ""
	}
	switch {
	case x == checksumXML{}, p.Checksum.Algorithm == "", x == newChecksumXML(p.Checksum):
		return nil
	case given == x: // all of it is by other algorithms
		return badRequest(codeBadDigest, "The checksum you specified for part %d is not by %s, as the part's is.", p.Number, p.Checksum.Algorithm)
	case given != checksumXML{}, checkChecksum(folder.Checksum{Algorithm: p.Checksum.Algorithm, Value: *x.element(p.Checksum.Algorithm)}) != nil:
		return badRequest(codeInvalidArgument, "Invalid Base64 or multiple checksums present in request: part %d", p.Number)
	}
	return badRequest(codeInvalidPart, "One or more of the specified parts could not be found: part %d has another checksum than the one given.", p.Number)
}

// uploadChecksum returns the algorithm of an upload's checksums, and whether
// that of the object is made of its parts' checksums, from a request's headers.
// The algorithm is "" when the client names none.
func uploadChecksum(h http.Header) (algorithm string, composite bool, err error) {
	algorithm, kind := strings.ToUpper(h.Get("X-Amz-Checksum-Algorithm")), strings.ToUpper(h.Get("X-Amz-Checksum-Type"))
	if algorithm == "" {
		if kind != "" {
			return "", false, badRequest(codeInvalidRequest, "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
		}
		return "", false, nil
	}
	t := checksumType(algorithm)
	switch {
	case !t.IsSet():
		return "", false, badRequest(codeInvalidRequest, "The checksum algorithm %s is not supported.", algorithm)
	case kind == "":
		return algorithm, t.CanComposite(), nil
	case kind == typeComposite && !t.CanComposite(), kind == typeFullObject && !t.CanMergeCRC():
		return "", false, badRequest(codeInvalidRequest, "The %s checksum type cannot be used with the %s checksum algorithm.", kind, strings.ToLower(algorithm))
	case kind != typeComposite && kind != typeFullObject:
		return "", false, badRequest(codeInvalidRequest, "Value for x-amz-checksum-type header is invalid.")
	}
	return algorithm, kind == typeComposite, nil
}

// objectChecksum makes an object's checksum of those of its parts; the zero one
// where a part has none.
func objectChecksum(u *folder.Upload, parts []folder.Part) (folder.Checksum, error) {
	c := folder.Checksum{Algorithm: u.ChecksumAlgorithm, Composite: u.ChecksumComposite}
	if c.Algorithm == "" {
		c.Algorithm = parts[0].Checksum.Algorithm
		c.Composite = !checksumType(c.Algorithm).CanMergeCRC()
	}
	list := make([]minio.ObjectPart, len(parts))
	for i, p := range parts {
		if p.Checksum.Algorithm != c.Algorithm {
			return folder.Checksum{}, nil
		}
		x := newChecksumXML(p.Checksum)
		list[i] = minio.ObjectPart{
			PartNumber: p.Number, Size: p.Size, ChecksumCRC32: x.ChecksumCRC32, ChecksumCRC32C: x.ChecksumCRC32C,
			ChecksumCRC64NVME: x.ChecksumCRC64NVME, ChecksumMD5: x.ChecksumMD5, ChecksumSHA1: x.ChecksumSHA1,
			ChecksumSHA256: x.ChecksumSHA256, ChecksumSHA512: x.ChecksumSHA512, ChecksumXXHash64: x.ChecksumXXHASH64,
			ChecksumXXHash3: x.ChecksumXXHASH3, ChecksumXXHash128: x.ChecksumXXHASH128,
		}
	}
	t := checksumType(c.Algorithm)
	combine := t.FullObjectChecksum
	if c.Composite {
		combine = t.CompositeChecksum
	}
	sum, err := combine(list)
	if err != nil {
		return c, err
	}
	c.Value = base64.StdEncoding.EncodeToString(sum.Raw())
	if c.Composite {
		c.Value += "-" + strconv.Itoa(len(parts))
	}
	return c, nil
}

func encodeSum(sum hash.Hash) string { return base64.StdEncoding.EncodeToString(sum.Sum(nil)) }
