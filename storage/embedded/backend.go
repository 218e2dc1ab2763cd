package embedded

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strings"

	"github.com/rclone/gofakes3"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

// backend is the folder as gofakes3 sees it. Multipart uploads never come here.
type backend struct {
	store *folder.Store
	log   *slog.Logger
}

var (
	_ gofakes3.Backend              = (*backend)(nil)
	_ gofakes3.ObjectTaggingBackend = (*backend)(nil)
)

// fail makes of an error what gofakes3 answers with, and sees to its status.
func (b *backend) fail(ctx context.Context, err error) error {
	f, known := faultOf(err)
	if !known && ctx.Err() == nil {
		b.log.Error("a storage request failed", "error", err)
	}
	exchangeOf(ctx).status = f.status
	return &f.ErrorResponse
}

func (b *backend) ListBuckets(ctx context.Context) ([]gofakes3.BucketInfo, error) {
	buckets, err := b.store.Buckets(ctx)
	if err != nil {
		return nil, b.fail(ctx, err)
	}
	infos := make([]gofakes3.BucketInfo, len(buckets))
	for i, bucket := range buckets {
		infos[i] = gofakes3.BucketInfo{Name: bucket.Name, CreationDate: gofakes3.NewContentTime(bucket.Created)}
	}
	return infos, nil
}

// CreateBucket is never called: see front.createBucket.
func (b *backend) CreateBucket(ctx context.Context, name string) error {
	if err := b.store.CreateBucket(name); err != nil {
		return b.fail(ctx, err)
	}
	return nil
}

func (b *backend) BucketExists(ctx context.Context, name string) (bool, error) {
	there, err := b.store.BucketExists(name)
	if err != nil {
		return false, b.fail(ctx, err)
	}
	return there, nil
}

func (b *backend) DeleteBucket(ctx context.Context, name string) error {
	if err := b.store.DeleteBucket(name); err != nil {
		return b.fail(ctx, err)
	}
	return nil
}

func (b *backend) ListBucket(ctx context.Context, name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	q := folder.Query{Max: gofakes3.DefaultMaxBucketKeys, After: page.Marker}
	if prefix != nil {
		q.Prefix, q.Delimiter = prefix.Prefix, prefix.Delimiter
	}
	if page.MaxKeys > 0 {
		q.Max = int(page.MaxKeys)
	}
	found, err := b.store.List(ctx, name, q)
	if err != nil {
		return nil, b.fail(ctx, err)
	}
	list := gofakes3.NewObjectList()
	for _, item := range found.Items {
		if item.Info == nil {
			list.AddPrefix(item.Prefix)
			continue
		}
		list.Add(&gofakes3.Content{
			Key:          item.Key,
			LastModified: gofakes3.NewContentTime(item.Modified),
			ETag:         `"` + item.ETag + `"`,
			Size:         item.Size,
			StorageClass: gofakes3.StorageStandard,
		})
	}
	list.NextMarker, list.IsTruncated = found.Next, found.Next != ""
	return list, nil
}

// describe makes an object's description gofakes3's.
func describe(info *folder.Info) *gofakes3.Object {
	meta := make(map[string]string, len(info.Attrs)+1)
	maps.Copy(meta, info.Attrs)
	meta["Last-Modified"] = info.Modified.UTC().Format(http.TimeFormat)
	o := &gofakes3.Object{Name: info.Key, Metadata: meta, Size: info.Size, Hash: hashOf(info.ETag)}
	for _, run := range info.Parts {
		for range run.Count {
			o.PartSizes = append(o.PartSizes, run.Size)
		}
	}
	return o
}

func (b *backend) HeadObject(ctx context.Context, bucket, key string) (*gofakes3.Object, error) {
	info, err := b.store.Stat(bucket, key)
	if err != nil {
		return nil, b.fail(ctx, err)
	}
	o := describe(info)
	o.Contents = io.NopCloser(strings.NewReader(""))
	return o, nil
}

func (b *backend) GetObject(ctx context.Context, bucket, key string, part *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	found, err := b.store.Open(bucket, key)
	if err != nil {
		return nil, b.fail(ctx, err)
	}
	o := describe(found.Info)
	if o.Range, err = clip(part, found.Size).Range(found.Size); err != nil {
		found.Close()
		return nil, err
	}
	c := &contents{object: found, left: found.Size}
	if o.Range != nil {
		c.offset, c.left = o.Range.Start, o.Range.Length
	}
	o.Contents = c
	return o, nil
}

// clip cuts a range at the object's ends, as RFC 9110 has it: a suffix longer
// than the object means all of it, and an end beyond the last byte is the last
// byte.
func clip(part *gofakes3.ObjectRangeRequest, size int64) *gofakes3.ObjectRangeRequest {
	if part == nil || size == 0 || part.End == gofakes3.RangeNoEnd {
		return part
	}
	clipped := *part
	if part.FromEnd {
		clipped.End = min(part.End, size)
	} else {
		clipped.End = min(part.End, max(size-1, part.Start-1))
	}
	return &clipped
}

func (b *backend) PutObject(ctx context.Context, bucket, key string, meta map[string]string, body io.Reader, size int64) (gofakes3.PutObjectResult, error) {
	x := exchangeOf(ctx)
	complete := func(info *folder.Info) error {
		if err := x.payload.Verify(); err != nil {
			return err
		}
		if x.payload.checksum != nil {
			info.Attrs[x.payload.checksumName] = x.payload.checksumWant
			x.Header().Set(x.payload.checksumName, x.payload.checksumWant)
		}
		return nil
	}
	info, err := b.store.Put(bucket, key, body, size, folder.Info{Attrs: attributes(meta)}, complete, x.check)
	if err != nil {
		return gofakes3.PutObjectResult{}, b.fail(ctx, err)
	}
	return gofakes3.PutObjectResult{ETag: `"` + info.ETag + `"`}, nil
}

// attributes are what gofakes3 wants back with an object, but for its time,
// which the folder keeps.
func attributes(meta map[string]string) map[string]string {
	attrs := maps.Clone(meta)
	if attrs == nil {
		attrs = map[string]string{}
	}
	delete(attrs, "Last-Modified")
	if attrs["Content-Type"] == "" {
		attrs["Content-Type"] = defaultContentType
	}
	return attrs
}

// defaultContentType is what S3 gives to objects that come without one.
const defaultContentType = "binary/octet-stream"

func (b *backend) CopyObject(ctx context.Context, fromBucket, fromKey, bucket, key string, meta map[string]string) (gofakes3.CopyObjectResult, error) {
	info, err := b.copy(fromBucket, fromKey, bucket, key, func(*folder.Info) map[string]string { return meta }, exchangeOf(ctx).check)
	if err != nil {
		return gofakes3.CopyObjectResult{}, b.fail(ctx, err)
	}
	return gofakes3.CopyObjectResult{
		ETag:         `"` + info.ETag + `"`,
		LastModified: gofakes3.NewContentTime(info.Modified),
	}, nil
}

// SetObjectTagging gives an object other tags.
func (b *backend) SetObjectTagging(ctx context.Context, bucket, key, tagging string) error {
	var tagged *folder.Info
	unchanged := func(current *folder.Info) error {
		if current == nil || current.ETag != tagged.ETag || !current.Modified.Equal(tagged.Modified) {
			return gofakes3.ErrPreconditionFailed // overwritten meanwhile: not to be undone
		}
		return nil
	}
	_, err := b.copy(bucket, key, bucket, key, func(old *folder.Info) map[string]string {
		tagged = old
		meta := maps.Clone(old.Attrs)
		delete(meta, gofakes3.TaggingMetadataKey)
		if tagging != "" {
			meta[gofakes3.TaggingMetadataKey] = tagging
		}
		return meta
	}, unchanged)
	if err != nil {
		return b.fail(ctx, err)
	}
	return nil
}

// copy copies an object, with the data's checksum and what meta says.
func (b *backend) copy(fromBucket, fromKey, bucket, key string, meta func(*folder.Info) map[string]string, check folder.Check) (*folder.Info, error) {
	from, err := b.store.Open(fromBucket, fromKey)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	attrs := attributes(meta(from.Info))
	for name, value := range from.Attrs {
		if strings.HasPrefix(name, checksumPrefix) {
			attrs[name] = value
		}
	}
	return b.store.Copy(from, bucket, key, folder.Info{Attrs: attrs}, check)
}

func (b *backend) DeleteObject(ctx context.Context, bucket, key string) (gofakes3.ObjectDeleteResult, error) {
	if err := b.store.Delete(ctx, bucket, []string{key}, nil)[0]; err != nil {
		return gofakes3.ObjectDeleteResult{}, b.fail(ctx, err)
	}
	return gofakes3.ObjectDeleteResult{}, nil
}

func (b *backend) DeleteMulti(ctx context.Context, bucket string, keys ...string) (gofakes3.MultiDeleteResult, error) {
	var result gofakes3.MultiDeleteResult
	for i, err := range b.store.Delete(ctx, bucket, keys, nil) {
		if err == nil {
			result.Deleted = append(result.Deleted, gofakes3.ObjectID{Key: keys[i]})
			continue
		}
		failed := gofakes3.ErrorResultFromError(b.fail(ctx, err))
		failed.Key = keys[i]
		result.Error = append(result.Error, failed)
	}
	return result, nil
}

// smallObject is what goes out in one write together with the headers.
const smallObject = 32 << 10

// contents are an object's bytes, or a part of them, on their way to a client.
type contents struct {
	object       *folder.Object
	offset, left int64
}

func (c *contents) Read(b []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.object.File.ReadAt(b[:min(int64(len(b)), c.left)], c.offset)
	c.offset, c.left = c.offset+int64(n), c.left-int64(n)
	return n, err
}

// WriteTo sends small objects at once, and others from file to socket without
// passing through here.
func (c *contents) WriteTo(w io.Writer) (int64, error) {
	if c.left <= smallObject {
		b := make([]byte, c.left)
		n, err := c.object.File.ReadAt(b, c.offset)
		if err != nil && err != io.EOF || n < len(b) {
			return 0, err
		}
		n, err = w.Write(b)
		return int64(n), err
	}
	if _, err := c.object.File.Seek(c.offset, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, &io.LimitedReader{R: c.object.File, N: c.left})
}

func (c *contents) Close() error { return c.object.Close() }
