package nn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
)

// The format of a weights file; all numbers are little-endian:
//
//	8 bytes   "NNWEIGHT"
//	uint32    version of the format, 1
//	uint32    number of tensors
//	  uint8, bytes        length of the tensor's name, the name
//	  uint8, uint32 …     number of dimensions, the dimensions
//	  float32 …           the values, last dimension fastest
//	uint32    CRC-32 (Castagnoli) of everything before it
const (
	magic         = "NNWEIGHT"
	formatVersion = 1
	headerLen     = len(magic) + 8
	checksumLen   = 4
)

// ErrWeights is the error for a file that has no weights for the network.
var ErrWeights = errors.New("unusable weights")

// Save writes the network's weights to w.
func (n *Network) Save(w io.Writer) error {
	if _, err := w.Write(n.encode()); err != nil {
		return fmt.Errorf("write weights: %w", err)
	}
	return nil
}

func (n *Network) encode() []byte {
	params := n.Params()
	b := []byte(magic)
	b = binary.LittleEndian.AppendUint32(b, formatVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(params)))
	for _, p := range params {
		b = append(b, uint8(len(p.Name)))
		b = append(b, p.Name...)
		b = append(b, uint8(len(p.Shape)))
		for _, d := range p.Shape {
			b = binary.LittleEndian.AppendUint32(b, uint32(d))
		}
		for _, v := range p.Value {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	return binary.LittleEndian.AppendUint32(b, checksum(b))
}

// Load replaces the network's weights by those in r. They must be complete, undamaged,
// finite and of exactly this network's names and shapes; otherwise the network is not
// changed and the error, an ErrWeights unless reading itself failed, says what was found
// and what was expected. It reads at most one byte beyond what the network needs.
func (n *Network) Load(r io.Reader) error {
	want := len(n.encode())
	b, err := io.ReadAll(io.LimitReader(r, int64(want)+1))
	if err != nil {
		return fmt.Errorf("read weights: %w", err)
	}
	// The header is checked before the length, for a more specific error.
	if len(b) < headerLen+checksumLen || string(b[:len(magic)]) != magic {
		return fmt.Errorf("%w: the file does not begin with %q and a header of %d bytes", ErrWeights, magic, headerLen)
	}
	if v := binary.LittleEndian.Uint32(b[len(magic):]); v != formatVersion {
		return fmt.Errorf("%w: format version %d, expected %d", ErrWeights, v, formatVersion)
	}
	if len(b) > want {
		return fmt.Errorf("%w: the file is longer than the %d bytes of this network", ErrWeights, want)
	}
	if len(b) < want {
		return fmt.Errorf("%w: the file has %d bytes, this network needs %d", ErrWeights, len(b), want)
	}
	body := b[:len(b)-checksumLen]
	if sum := binary.LittleEndian.Uint32(b[len(body):]); sum != checksum(body) {
		return fmt.Errorf("%w: checksum %08x, expected %08x: the file is damaged", ErrWeights, checksum(body), sum)
	}

	params := n.Params()
	if k := binary.LittleEndian.Uint32(body[len(magic)+4:]); k != uint32(len(params)) {
		return fmt.Errorf("%w: %d tensors, expected %d", ErrWeights, k, len(params))
	}
	values := make([][]float32, len(params))
	rest := bytes.NewReader(body[headerLen:])
	for i, p := range params {
		if values[i], err = decodeTensor(rest, p); err != nil {
			return fmt.Errorf("%w: tensor %d: %w", ErrWeights, i, err)
		}
	}
	if rest.Len() > 0 {
		return fmt.Errorf("%w: %d bytes behind the last tensor", ErrWeights, rest.Len())
	}
	for i, p := range params {
		copy(p.Value, values[i])
	}
	return nil
}

// decodeTensor reads the values of p, whose name and shape must come first.
func decodeTensor(r *bytes.Reader, p *Param) ([]float32, error) {
	nameLen, err := r.ReadByte()
	if err != nil {
		return nil, fmt.Errorf("read the length of its name: %w", err)
	}
	name := make([]byte, nameLen)
	if _, err := io.ReadFull(r, name); err != nil {
		return nil, fmt.Errorf("read its name: %w", err)
	}
	if string(name) != p.Name {
		return nil, fmt.Errorf("is %q, expected %q", name, p.Name)
	}
	rank, err := r.ReadByte()
	if err != nil {
		return nil, fmt.Errorf("read the number of dimensions of %s: %w", p.Name, err)
	}
	dims := make([]uint32, rank)
	if err := binary.Read(r, binary.LittleEndian, dims); err != nil {
		return nil, fmt.Errorf("read the dimensions of %s: %w", p.Name, err)
	}
	if !slices.EqualFunc(dims, p.Shape, func(d uint32, want int) bool { return int64(d) == int64(want) }) {
		return nil, fmt.Errorf("%s has dimensions %d, expected %d", p.Name, dims, p.Shape)
	}
	values := make([]float32, len(p.Value))
	if err := binary.Read(r, binary.LittleEndian, values); err != nil {
		return nil, fmt.Errorf("read the values of %s: %w", p.Name, err)
	}
	for i, v := range values {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, fmt.Errorf("value %d of %s is %v", i, p.Name, v)
		}
	}
	return values, nil
}

func checksum(b []byte) uint32 {
	return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
}
