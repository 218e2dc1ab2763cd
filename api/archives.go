package api

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"time"

	"github.com/iterait/shepherd/job"
)

// archive is a file that others are put into, as it is sent.
type archive interface {
	// add begins a file. Its content is written to what add returns before the next
	// one.
	add(name string, f *job.File) (io.Writer, error)
	// Close completes the archive.
	Close() error
}

// newTar returns an archive in tar format, written to w.
func newTar(w io.Writer) archive { return tarArchive{tar.NewWriter(w)} }

type tarArchive struct{ *tar.Writer }

func (t tarArchive) add(name string, f *job.File) (io.Writer, error) {
	return t.Writer, t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: f.Size, Mode: 0o644, ModTime: f.Modified.Truncate(time.Second)})
}

// newZip returns an archive in zip format, written to w.
func newZip(w io.Writer) archive { return &zipArchive{to: w} }

// zipArchive writes what zip.Writer writes, byte for byte, in a tenth of its memory: that
// keeps some 300 bytes for each file until it writes the directory at the archive's end.
// So there is one zip.Writer for each zipSection files, and the part of the directory that
// it writes is kept compressed.
type zipArchive struct {
	to      io.Writer
	written int64 // to to
	section *zip.Writer
	files   int           // of the section
	held    *bytes.Buffer // what the section writes now, if not nil

	directory bytes.Buffer  // compressed by deflate
	deflate   *flate.Writer // into directory; nil before the first section has ended
	end       zipEnd
}

// zipSection is how many files one zip.Writer writes.
const zipSection = 4096

// Write takes what the section writes.
func (z *zipArchive) Write(p []byte) (int, error) {
	if z.held != nil {
		return z.held.Write(p)
	}
	n, err := z.to.Write(p)
	z.written += int64(n)
	return n, err
}

func (z *zipArchive) add(name string, f *job.File) (io.Writer, error) {
	if z.files == zipSection {
		if err := z.endSection(); err != nil {
			return nil, err
		}
	}
	if z.section == nil {
		z.section = zip.NewWriter(z)
		z.section.SetOffset(z.written)
	}
	z.files++
	return z.section.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store, Modified: f.Modified})
}

// endSection moves the section's part of the directory to z.directory.
func (z *zipArchive) endSection() error {
	if err := z.section.Flush(); err != nil {
		return err
	}
	at := z.written
	z.held = new(bytes.Buffer)
	err := z.section.Close()
	tail := z.held.Bytes()
	z.section, z.files, z.held = nil, 0, nil
	if err != nil {
		return err
	}
	end, err := readZipEnd(tail)
	if err != nil {
		return err
	}
	directory := tail[end.offset-at:]
	if _, err := z.Write(tail[:end.offset-at]); err != nil { // what follows the last file
		return err
	}
	if z.deflate == nil {
		if z.deflate, err = flate.NewWriter(&z.directory, flate.BestSpeed); err != nil {
			return err
		}
	}
	z.end.records += end.records
	z.end.size += end.size
	_, err = z.deflate.Write(directory[:end.size])
	return err
}

// Close writes the directory.
func (z *zipArchive) Close() error {
	if z.section != nil {
		if err := z.endSection(); err != nil {
			return err
		}
	}
	z.end.offset = z.written
	if z.deflate != nil {
		if err := z.deflate.Close(); err != nil {
			return err
		}
		if _, err := io.Copy(z, flate.NewReader(&z.directory)); err != nil {
			return err
		}
	}
	_, err := z.Write(z.end.text())
	return err
}

// zipEnd is what the end of a zip file says of its directory.
type zipEnd struct {
	records      uint64
	size, offset int64
}

// The records at the end of a zip file, as PKWARE's APPNOTE 4.3.14 to 4.3.16 has them.
const (
	zipEndSignature, zipEndLength             = 0x06054b50, 22
	zip64LocatorSignature, zip64LocatorLength = 0x07064b50, 20
	zip64EndSignature, zip64EndLength         = 0x06064b50, 56
	zip64Version                              = 45
)

// text is the end, with the records of zip64 where numbers are too large without.
func (e zipEnd) text() []byte {
	le := binary.LittleEndian
	var text []byte
	records, size, offset := e.records, e.size, e.offset
	if records >= math.MaxUint16 || size >= math.MaxUint32 || offset >= math.MaxUint32 {
		text = le.AppendUint32(text, zip64EndSignature)
		text = le.AppendUint64(text, zip64EndLength-12) // of what follows
		text = le.AppendUint16(text, zip64Version)      // made by
		text = le.AppendUint16(text, zip64Version)      // needed to extract
		text = le.AppendUint64(text, 0)                 // numbers of disks
		text = le.AppendUint64(text, records)           // on this disk
		text = le.AppendUint64(text, records)
		text = le.AppendUint64(text, uint64(size))
		text = le.AppendUint64(text, uint64(offset))
		text = le.AppendUint32(text, zip64LocatorSignature)
		text = le.AppendUint32(text, 0) // disk
		text = le.AppendUint64(text, uint64(e.offset+e.size))
		text = le.AppendUint32(text, 1) // number of disks
		records, size, offset = math.MaxUint16, math.MaxUint32, math.MaxUint32
	}
	text = le.AppendUint32(text, zipEndSignature)
	text = le.AppendUint32(text, 0)               // numbers of disks
	text = le.AppendUint16(text, uint16(records)) // on this disk
	text = le.AppendUint16(text, uint16(records))
	text = le.AppendUint32(text, uint32(size))
	text = le.AppendUint32(text, uint32(offset))
	return le.AppendUint16(text, 0) // length of the comment
}

// readZipEnd reads what text, the end of a zip file without a comment, says.
func readZipEnd(text []byte) (zipEnd, error) {
	le := binary.LittleEndian
	last, found := lastBytes(text, zipEndLength, zipEndSignature)
	if !found {
		return zipEnd{}, errors.New("the zip file has no end")
	}
	records, size, offset := le.Uint16(last[10:]), le.Uint32(last[12:]), le.Uint32(last[16:])
	if records != math.MaxUint16 && size != math.MaxUint32 && offset != math.MaxUint32 { // a name may look like what follows
		return zipEnd{uint64(records), int64(size), int64(offset)}, nil
	}
	before := text[:len(text)-zipEndLength]
	if _, found = lastBytes(before, zip64LocatorLength, zip64LocatorSignature); !found {
		return zipEnd{}, errors.New("the zip file has no zip64 locator")
	}
	end, found := lastBytes(before[:len(before)-zip64LocatorLength], zip64EndLength, zip64EndSignature)
	if !found {
		return zipEnd{}, errors.New("the zip file has no zip64 end")
	}
	return zipEnd{le.Uint64(end[32:]), int64(le.Uint64(end[40:])), int64(le.Uint64(end[48:]))}, nil
}

// lastBytes is the last n bytes of text, and whether they begin with the signature.
func lastBytes(text []byte, n int, signature uint32) ([]byte, bool) {
	if len(text) < n {
		return nil, false
	}
	last := text[len(text)-n:]
	return last, binary.LittleEndian.Uint32(last) == signature
}
