package embedded

import (
	"encoding/xml"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

const maxListed = 1000 // objects, uploads or parts in one answer

type objectXML struct {
	Key               string
	LastModified      string
	ETag              string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
	Size              int64
	StorageClass      string
	Owner             *ownerXML
}

type versionXML struct {
	Key               string
	VersionID         string `xml:"VersionId"`
	IsLatest          bool
	LastModified      string
	ETag              string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
	Size              int64
	StorageClass      string
	Owner             ownerXML
}

type prefixXML struct{ Prefix string }

// listing is what a request for a listing asks for.
type listing struct {
	prefix, delimiter, encoding string
	max                         int
}

func (r *request) listing() (listing, error) {
	l := listing{prefix: r.query("prefix"), delimiter: r.query("delimiter"), encoding: r.query("encoding-type")}
	var err error
	if l.max, _, err = r.number("max-keys", maxListed, 0, maxListed); err != nil {
		return l, err
	}
	if l.encoding != "" && l.encoding != "url" {
		return l, badRequest(codeInvalidArgument, "Invalid Encoding Method specified in Request.")
	}
	return l, nil
}

// wire is a key, or a part of one, as the client asked for it.
func (l listing) wire(s string) string {
	if l.encoding == "url" {
		return escapePath(s)
	}
	return s
}

// page lists what comes after after.
func (h *handler) page(r *request, l listing, after string) (folder.Page, []prefixXML, error) {
	if l.max == 0 {
		_, err := h.store.StatBucket(r.bucket)
		return folder.Page{}, nil, err
	}
	page, err := h.store.List(r.Context(), r.bucket, folder.Query{Prefix: l.prefix, Delimiter: l.delimiter, After: after, Max: l.max})
	var prefixes []prefixXML
	for _, item := range page.Items {
		if item.Info == nil {
			prefixes = append(prefixes, prefixXML{l.wire(item.Prefix)})
		}
	}
	return page, prefixes, err
}

func (l listing) objects(page folder.Page, owner *ownerXML) []objectXML {
	var objects []objectXML
	for _, item := range page.Items {
		if item.Info == nil {
			continue
		}
		o := objectXML{
			Key: l.wire(item.Key), LastModified: wireTime(item.Modified), ETag: quote(item.ETag), Size: item.Size,
			StorageClass: classOf(item.Attrs), Owner: owner,
		}
		if item.Checksum.Algorithm != "" {
			o.ChecksumAlgorithm, o.ChecksumType = item.Checksum.Algorithm, typeOf(item.Checksum)
		}
		objects = append(objects, o)
	}
	return objects
}

func (h *handler) listObjects(r *request) error {
	l, err := r.listing()
	if err != nil {
		return err
	}
	marker := r.query("marker")
	page, prefixes, err := h.page(r, l, marker)
	if err != nil {
		return err
	}
	return writeXML(r.w, r.Request, struct {
		XMLName        xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
		Name           string
		Prefix         string
		Marker         string
		NextMarker     string `xml:",omitempty"`
		MaxKeys        int
		Delimiter      string `xml:",omitempty"`
		EncodingType   string `xml:",omitempty"`
		IsTruncated    bool
		Contents       []objectXML
		CommonPrefixes []prefixXML
	}{
		Name: r.bucket, Prefix: l.wire(l.prefix), Marker: l.wire(marker), NextMarker: l.wire(page.Next), MaxKeys: l.max,
		Delimiter: l.wire(l.delimiter), EncodingType: l.encoding, IsTruncated: page.Next != "",
		Contents: l.objects(page, &owner), CommonPrefixes: prefixes,
	})
}

func (h *handler) listObjectsV2(r *request) error {
	if r.query("list-type") != "2" {
		return badRequest(codeInvalidArgument, "The value of list-type must be 2.")
	}
	l, err := r.listing()
	if err != nil {
		return err
	}
	token := r.query("continuation-token")
	after, err := decodeToken(token)
	if err != nil {
		return err
	}
	if token == "" {
		after = r.query("start-after")
	}
	page, prefixes, err := h.page(r, l, after)
	if err != nil {
		return err
	}
	var who *ownerXML
	if r.query("fetch-owner") == "true" {
		who = &owner
	}
	out := struct {
		XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
		Name                  string
		Prefix                string
		StartAfter            string `xml:",omitempty"`
		ContinuationToken     *string
		NextContinuationToken string `xml:",omitempty"`
		KeyCount              int
		MaxKeys               int
		Delimiter             string `xml:",omitempty"`
		EncodingType          string `xml:",omitempty"`
		IsTruncated           bool
		Contents              []objectXML
		CommonPrefixes        []prefixXML
	}{
		Name: r.bucket, Prefix: l.wire(l.prefix), StartAfter: l.wire(r.query("start-after")), KeyCount: len(page.Items), MaxKeys: l.max,
		Delimiter: l.wire(l.delimiter), EncodingType: l.encoding, IsTruncated: page.Next != "",
		Contents: l.objects(page, who), CommonPrefixes: prefixes,
	}
	if r.params.has("continuation-token") {
		out.ContinuationToken = &token
	}
	if page.Next != "" {
		out.NextContinuationToken = encodeToken(page.Next)
	}
	return writeXML(r.w, r.Request, out)
}

// listVersions lists the one version that each object has.
func (h *handler) listVersions(r *request) error {
	l, err := r.listing()
	if err != nil {
		return err
	}
	marker, idMarker := r.query("key-marker"), r.query("version-id-marker")
	if idMarker != "" && idMarker != "null" {
		return badRequest(codeInvalidArgument, "Invalid version id specified.")
	}
	page, prefixes, err := h.page(r, l, marker)
	if err != nil {
		return err
	}
	out := struct {
		XMLName             xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListVersionsResult"`
		Name                string
		Prefix              string
		KeyMarker           string
		VersionIDMarker     string `xml:"VersionIdMarker"`
		NextKeyMarker       string `xml:",omitempty"`
		NextVersionIDMarker string `xml:"NextVersionIdMarker,omitempty"`
		MaxKeys             int
		Delimiter           string `xml:",omitempty"`
		EncodingType        string `xml:",omitempty"`
		IsTruncated         bool
		Version             []versionXML
		CommonPrefixes      []prefixXML
	}{
		Name: r.bucket, Prefix: l.wire(l.prefix), KeyMarker: l.wire(marker), VersionIDMarker: idMarker, NextKeyMarker: l.wire(page.Next),
		MaxKeys: l.max, Delimiter: l.wire(l.delimiter), EncodingType: l.encoding, IsTruncated: page.Next != "", CommonPrefixes: prefixes,
	}
	if page.Next != "" {
		out.NextVersionIDMarker = "null"
	}
	for _, o := range l.objects(page, &owner) {
		out.Version = append(out.Version, versionXML{
			Key: o.Key, VersionID: "null", IsLatest: true, LastModified: o.LastModified, ETag: o.ETag,
			ChecksumAlgorithm: o.ChecksumAlgorithm, ChecksumType: o.ChecksumType, Size: o.Size, StorageClass: o.StorageClass, Owner: owner,
		})
	}
	return writeXML(r.w, r.Request, out)
}
