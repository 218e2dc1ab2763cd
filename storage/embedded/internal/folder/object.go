package folder

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/iterait/shepherd/internal/durable"
)

// Info describes an object or a part. It is what the footer of the file holds,
// as JSON.
type Info struct {
	Key      string            `json:"key"`
	Size     int64             `json:"size"` // bytes
	ETag     string            `json:"etag"` // without quotes
	Modified time.Time         `json:"modified"`
	Attrs    map[string]string `json:"attrs,omitempty"` // what the client said of it
	Checksum Checksum          `json:"checksum,omitzero"`
	Parts    []Run             `json:"parts,omitempty"`  // of a multipart upload
	Upload   string            `json:"upload,omitempty"` // that it was completed from

	// Data is the directory of the files that hold the data, where it is not the
	// object's own file. Whole says that it is one file, whatever Parts says.
	Data   string `json:"data,omitempty"`
	Whole  bool   `json:"whole,omitempty"`
	Bucket string `json:"bucket,omitempty"` // set with Data
}

// Checksum is a checksum of an object or a part, by one of the algorithms that
// S3 knows.
type Checksum struct {
	Algorithm string `json:"algorithm"` // "CRC32C"
	Value     string `json:"value"`     // base64; of a composite one with "-" and the number of parts
	Composite bool   `json:"composite,omitempty"`
}

// Run is a number of parts of the same size, with consecutive numbers.
type Run struct {
	First int   `json:"first,omitempty"`
	Count int   `json:"n"`
	Size  int64 `json:"size"`
}

// The footer: the description, its length and CRC-32C (big endian), a magic.
const (
	magic      = "shpobj1\n"
	tailSize   = 16
	maxInfo    = 1 << 20
	firstRead  = 4096 // holds the footer of all but large multipart objects
	bufferSize = 256 << 10
	syncEvery  = 16 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	errFooter  = lost("damaged: the file's footer does not fit it")
)

// lost is the error of an object of which something cannot be read any more. It says what
// to do next.
func lost(what string) error {
	return fmt.Errorf("%s; upload the object again, or restore the file from a backup: %w", what, errdefs.ErrDataLoss)
}

// encodeFooter returns what follows the data.
func encodeFooter(info *Info) ([]byte, error) {
	text, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	footer := binary.BigEndian.AppendUint32(text, uint32(len(text)))
	footer = binary.BigEndian.AppendUint32(footer, crc32.Checksum(text, castagnoli))
	return append(footer, magic...), nil
}

// readInfo reads the description of a file and checks that the file is whole.
func readInfo(f *os.File) (*Info, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	total := st.Size()
	tail := make([]byte, min(total, firstRead))
	if _, err := f.ReadAt(tail, total-int64(len(tail))); err != nil {
		return nil, err
	}
	if len(tail) < tailSize || string(tail[len(tail)-8:]) != magic {
		return nil, errFooter
	}
	length := int64(binary.BigEndian.Uint32(tail[len(tail)-tailSize:]))
	sum := binary.BigEndian.Uint32(tail[len(tail)-tailSize+4:])
	if length > maxInfo || length+tailSize > total {
		return nil, errFooter
	}
	text := tail[:len(tail)-tailSize]
	if int64(len(text)) >= length {
		text = text[int64(len(text))-length:]
	} else {
		text = make([]byte, length)
		if _, err := f.ReadAt(text, total-tailSize-length); err != nil {
			return nil, err
		}
	}
	info := new(Info)
	if crc32.Checksum(text, castagnoli) != sum || json.Unmarshal(text, info) != nil ||
		info.Data == "" && info.Size != total-tailSize-length {
		return nil, errFooter
	}
	return info, nil
}

// openFile opens an object's or part's own file, or returns ErrNoKey.
func openFile(path, key string) (*os.File, *Info, error) {
	f, err := durable.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil, nil, fmt.Errorf("%q: %w", key, ErrNoKey)
		}
		return nil, nil, fmt.Errorf("open object %q: %w", key, err)
	}
	info, err := readInfo(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("open object %q: %w", key, err)
	}
	return f, info, nil
}

// statFile is openFile for the description alone; nil when there is no file.
func statFile(path, key string) (*Info, error) {
	f, info, err := openFile(path, key)
	if errors.Is(err, ErrNoKey) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return info, f.Close()
}

// draft is an object being written, out of sight in tmp/.
type draft struct {
	file   *os.File
	buffer *[]byte // from buffers; nil once all is written
	held   int     // bytes of the buffer that are still to be written
	size   int64
	sum    []byte // MD5 of the data
	later  bool   // Sync makes it durable
	placed bool   // renamed to where it belongs
}

func (s *Store) newDraft() (*draft, error) { return s.newDraftAt(s.tmpName("draft-")) }

// newDraftAt makes a draft that is a new file at path.
func (s *Store) newDraftAt(path string) (*draft, error) {
	f, err := durable.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &draft{file: f}, nil
}

// tmpName returns a path in tmp/ that nothing has yet. Open empties tmp/, and
// no other process writes there.
func (s *Store) tmpName(prefix string) string {
	return s.tmp + "/" + prefix + strconv.FormatInt(s.drafts.Add(1), 10)
}

// buffers are for data on its way to disk; Go's collector would otherwise be
// kept busy by uploads.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// fill writes a body of the given size (-1: whatever comes) to the draft, and
// computes its MD5 where that is wanted. What fits into one buffer is written
// by seal, together with the footer.
func (d *draft) fill(body io.Reader, size int64, withMD5 bool) error {
	if size >= syncEvery {
		// Find out before the client has sent it all that the disk is full. Not
		// every file system can tell.
		err := unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if IsFull(err) {
			return fmt.Errorf("reserve %d bytes: %w", size, err)
		}
	}
	sum := md5.New()
	d.buffer = buffers.Get().(*[]byte)
	var started int64 // where writeback was last set off
	for {
		if err := d.flush(); err != nil {
			return err
		}
		n, err := readMost(body, *d.buffer)
		d.held = n
		d.size += int64(n)
		if withMD5 {
			sum.Write((*d.buffer)[:n])
		}
		if d.size-started >= syncEvery {
			// Let the disk work while the rest arrives; the fsync at the end
			// then has little left to wait for.
			if err := d.flush(); err != nil {
				return err
			}
			_ = unix.SyncFileRange(int(d.file.Fd()), started, d.size-started, unix.SYNC_FILE_RANGE_WRITE)
			started = d.size
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if size >= 0 && d.size != size {
		return fmt.Errorf("%w: %d bytes instead of %d", ErrShortBody, d.size, size)
	}
	d.sum = sum.Sum(nil)
	return nil
}

// flush writes what is held in the buffer.
func (d *draft) flush() error {
	if d.held == 0 {
		return nil
	}
	_, err := d.file.Write((*d.buffer)[:d.held])
	d.held = 0
	return err
}

// readMost fills buf unless the body ends or fails. Unlike io.ReadFull it keeps
// a body that was cut short apart from one that ended.
func readMost(body io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = body.Read(buf[n:])
		n += m
	}
	return n, err
}

// appendObject copies what src holds, inside the file system where it can, until ctx ends.
func (d *draft) appendObject(ctx context.Context, src *Object) error {
	for offset := int64(0); offset < src.Size; offset += syncEvery {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(syncEvery, src.Size-offset)
		if err := src.CopyTo(d.file, offset, n, n, func() {}); err != nil {
			return err
		}
		d.size += n
		_ = unix.SyncFileRange(int(d.file.Fd()), offset, n, unix.SYNC_FILE_RANGE_WRITE)
	}
	return ctx.Err()
}

// etag is that of an object uploaded in one piece.
func (d *draft) etag() string { return hex.EncodeToString(d.sum) }

// seal writes the footer and makes the draft durable, unless that is left to Sync.
// Size is filled in, unless the data lies elsewhere.
func (d *draft) seal(info *Info) error {
	if info.Data == "" {
		info.Size = d.size
	}
	footer, err := encodeFooter(info)
	if err != nil {
		return err
	}
	if d.held > 0 && d.held+len(footer) <= len(*d.buffer) {
		d.held += copy((*d.buffer)[d.held:], footer)
		footer = nil
	}
	if err := d.flush(); err != nil {
		return err
	}
	if len(footer) > 0 {
		if _, err := d.file.Write(footer); err != nil {
			return err
		}
	}
	if d.later {
		return nil
	}
	return d.file.Sync()
}

// moveTo renames the draft into its place.
func (d *draft) moveTo(path string) error {
	err := unix.Rename(d.file.Name(), path)
	d.placed = err == nil
	if err != nil {
		return &os.LinkError{Op: "rename", Old: d.file.Name(), New: path, Err: err}
	}
	return nil
}

// close removes the draft unless it was moved into its place.
func (d *draft) close() {
	if d.buffer != nil {
		buffers.Put(d.buffer)
		d.buffer = nil
	}
	d.file.Close()
	if !d.placed {
		os.Remove(d.file.Name())
	}
}

// now is the time as objects carry it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
