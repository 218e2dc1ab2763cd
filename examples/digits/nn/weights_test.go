package nn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func saved(t testing.TB, n *Network) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := n.Save(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// resum updates the checksum of b.
func resum(b []byte) []byte {
	body := b[:len(b)-checksumLen]
	binary.LittleEndian.PutUint32(b[len(body):], checksum(body))
	return b
}

func TestWeightsRoundTrip(t *testing.T) {
	file := saved(t, smallNetwork(1))
	other := smallNetwork(2)
	if err := other.Load(iotest.OneByteReader(bytes.NewReader(file))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(saved(t, other), file) {
		t.Error("the weights loaded are not the weights saved")
	}
}

func TestLoadRefuses(t *testing.T) {
	good := saved(t, smallNetwork(1))
	firstName := headerLen + 1
	firstRank := firstName + len("conv1.weight")
	firstValue := firstRank + 1 + 4*4
	nan := binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(math.NaN())))
	put := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); return b }
	}
	for _, tc := range []struct {
		name   string
		damage func([]byte) []byte
		resum  bool
		want   string
	}{
		{"empty", func([]byte) []byte { return nil }, false, "does not begin with"},
		{"something else", func([]byte) []byte { return []byte("<html>not found, sorry</html>") }, false, "does not begin with"},
		{"header only", func(b []byte) []byte { return b[:headerLen] }, false, "does not begin with"},
		{"other version", put(8, 2), true, "format version 2, expected 1"},
		{"cut off", func(b []byte) []byte { return b[:len(b)/2] }, false, "this network needs"},
		{"too long", func(b []byte) []byte { return append(b, 0) }, false, "longer than"},
		{"a bit flipped", func(b []byte) []byte { b[firstValue] ^= 1; return b }, false, "the file is damaged"},
		{"tensor count", put(12, 99), true, "99 tensors, expected 8"},
		{"name", put(firstName, 'k'), true, `tensor 0: is "konv1.weight", expected "conv1.weight"`},
		{"length of name", put(firstName-1, 5), true, `is "conv1"`},
		{"dimension", put(firstRank+1, 3), true, "has dimensions [3 1 5 5], expected [2 1 5 5]"},
		{"rank", put(firstRank, 200), true, "conv1.weight has dimensions"},
		{"not a number", put(firstValue, nan...), true, "value 0 of conv1.weight is NaN"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := tc.damage(slices.Clone(good))
			if tc.resum {
				b = resum(b)
			}
			n := smallNetwork(2)
			before := saved(t, n)
			err := n.Load(bytes.NewReader(b))
			if !errors.Is(err, ErrWeights) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, expected an ErrWeights with %q", err, tc.want)
			}
			if !bytes.Equal(saved(t, n), before) {
				t.Error("the network was changed")
			}
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		cause := errors.New("disk on fire")
		if err := smallNetwork(2).Load(iotest.ErrReader(cause)); !errors.Is(err, cause) || errors.Is(err, ErrWeights) {
			t.Errorf("error is %v, expected only %v", err, cause)
		}
	})
}

// Save writes the same bytes that Load accepted. Load refuses other files with ErrWeights.
func FuzzLoad(f *testing.F) {
	good := saved(f, smallNetwork(1))
	f.Add(good)
	f.Add(good[:100])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > headerLen+checksumLen {
			b = resum(slices.Clone(b)) // or nothing would get past the checksum
		}
		n := smallNetwork(2)
		err := n.Load(bytes.NewReader(b))
		switch {
		case err == nil && !bytes.Equal(saved(t, n), b):
			t.Error("a file that was accepted is not what would be saved")
		case err != nil && !errors.Is(err, ErrWeights):
			t.Errorf("error of another kind: %v", err)
		}
	})
}
