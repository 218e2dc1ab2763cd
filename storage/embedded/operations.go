package embedded

import (
	"net/http"
	"slices"
	"strings"
)

// resource is what a request's path names.
type resource int

const (
	onService resource = iota
	onBucket
	onObject
)

// target is a method and what it is for.
type target struct {
	method string
	on     resource
}

// operation is one thing that a request can ask for. A request belongs to the
// operation whose sub-resource and header it has; whatever else it says that the
// operation does not know makes it refused, before anything is done.
type operation struct {
	target
	sub     string   // the query parameter that selects it; "" for none
	header  string   // the header that selects it; "" for none
	params  []string // other query parameters that it knows
	headers []string // headers that change a meaning and that it knows

	sums      sums // what checksum headers are about
	anonymous bool // it looks for a signature itself
	creates   bool // it makes or removes a bucket
	grows     bool // it takes room on the disk

	do func(*handler, *request) error
}

// sums is what the checksum headers of a request are about.
type sums int

const (
	sumOfBody   sums = iota // the body, if there are any
	sumOfData               // the body, which is data that gets a checksum in any case
	sumOfObject             // the object that becomes of an upload
)

// Headers that several operations know.
var (
	attributeHeaders = []string{
		"X-Amz-Acl", classHeader, "X-Amz-Tagging", "X-Amz-Website-Redirect-Location", "X-Amz-Meta-*",
		"X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Bucket-Key-Enabled",
	}
	writeConditions = []string{"If-Match", "If-None-Match"}
	readConditions  = []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"}
	copyHeaders     = []string{
		"X-Amz-Copy-Source-If-Match", "X-Amz-Copy-Source-If-None-Match", "X-Amz-Copy-Source-If-Modified-Since",
		"X-Amz-Copy-Source-If-Unmodified-Since", "X-Amz-Source-Expected-Bucket-Owner",
	}
	readParams = []string{
		"versionId", "response-cache-control", "response-content-disposition", "response-content-encoding",
		"response-content-language", "response-content-type", "response-expires",
	}
	// MinIO's clients ask for metadata, which a listing of S3 does not have either.
	listParams = []string{"prefix", "delimiter", "max-keys", "encoding-type", "metadata"}
)

// operations returns the table of all that the server can do, by the names that
// https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations.html gives.
func operations() []*operation {
	join := slices.Concat[[]string]
	get, head, put, post, del := http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete
	return []*operation{
		// ListBuckets
		{target: target{get, onService}, params: []string{"prefix", "max-buckets", "continuation-token", "bucket-region"}, do: (*handler).listBuckets},

		// CreateBucket, DeleteBucket, HeadBucket
		{target: target{put, onBucket}, creates: true, headers: []string{"X-Amz-Acl", "X-Amz-Bucket-Object-Lock-Enabled", "X-Amz-Object-Ownership"}, grows: true, do: (*handler).createBucket},
		{target: target{del, onBucket}, creates: true, do: (*handler).deleteBucket},
		{target: target{head, onBucket}, do: (*handler).headBucket},
		// ListObjects, ListObjectsV2, ListObjectVersions
		{target: target{get, onBucket}, params: join(listParams, []string{"marker"}), headers: []string{"X-Amz-Optional-Object-Attributes"}, do: (*handler).listObjects},
		{target: target{get, onBucket}, sub: "list-type", params: join(listParams, []string{"continuation-token", "start-after", "fetch-owner"}), headers: []string{"X-Amz-Optional-Object-Attributes"}, do: (*handler).listObjectsV2},
		{target: target{get, onBucket}, sub: "versions", params: join(listParams, []string{"key-marker", "version-id-marker"}), headers: []string{"X-Amz-Optional-Object-Attributes"}, do: (*handler).listVersions},
		// DeleteObjects
		{target: target{post, onBucket}, sub: "delete", headers: []string{"X-Amz-Bypass-Governance-Retention"}, do: (*handler).deleteObjects},
		// PostObject
		{target: target{post, onBucket}, anonymous: true, do: (*handler).postObject},
		// ListMultipartUploads
		{target: target{get, onBucket}, sub: "uploads", params: []string{"prefix", "delimiter", "max-uploads", "key-marker", "upload-id-marker", "encoding-type"}, do: (*handler).listUploads},
		// GetBucketTagging, PutBucketTagging, DeleteBucketTagging
		{target: target{get, onBucket}, sub: "tagging", do: (*handler).getBucketTagging},
		{target: target{put, onBucket}, sub: "tagging", do: (*handler).putBucketTagging},
		{target: target{del, onBucket}, sub: "tagging", do: (*handler).deleteBucketTagging},
		// What is asked of a bucket's configuration in passing. Nothing of it can
		// be changed.
		{target: target{get, onBucket}, sub: "location", do: fixed(locationXML{})},
		{target: target{get, onBucket}, sub: "versioning", do: fixed(versioningXML{})},
		{target: target{get, onBucket}, sub: "logging", do: fixed(loggingXML{})},
		{target: target{get, onBucket}, sub: "notification", do: fixed(notificationXML{})},
		{target: target{get, onBucket}, sub: "accelerate", do: fixed(accelerateXML{})},
		{target: target{get, onBucket}, sub: "requestPayment", do: fixed(requestPaymentXML{Payer: "BucketOwner"})},
		{target: target{get, onBucket}, sub: "ownershipControls", do: fixed(ownershipXML{Rule: []ownershipRule{{"BucketOwnerEnforced"}}})},
		{target: target{get, onBucket}, sub: "acl", do: fixed(ownerACL())},
		{target: target{put, onBucket}, sub: "acl", headers: []string{"X-Amz-Acl"}, do: (*handler).putACL},
		{target: target{get, onBucket}, sub: "policy", do: unset("NoSuchBucketPolicy", "policy")},
		{target: target{get, onBucket}, sub: "policyStatus", do: unset("NoSuchBucketPolicy", "policy")},
		{target: target{get, onBucket}, sub: "lifecycle", do: unset("NoSuchLifecycleConfiguration", "lifecycle")},
		{target: target{get, onBucket}, sub: "cors", do: unset("NoSuchCORSConfiguration", "CORS configuration of its own")},
		{target: target{get, onBucket}, sub: "website", do: unset("NoSuchWebsiteConfiguration", "website")},
		{target: target{get, onBucket}, sub: "encryption", do: unset("ServerSideEncryptionConfigurationNotFoundError", "encryption")},
		{target: target{get, onBucket}, sub: "object-lock", do: unset("ObjectLockConfigurationNotFoundError", "object lock")},
		{target: target{get, onBucket}, sub: "replication", do: unset("ReplicationConfigurationNotFoundError", "replication")},
		{target: target{get, onBucket}, sub: "publicAccessBlock", do: unset("NoSuchPublicAccessBlockConfiguration", "public access block")},

		// GetObject, HeadObject
		{target: target{get, onObject}, params: join(readParams, []string{"partNumber"}), headers: join(readConditions, []string{"Range", "If-Range", "X-Amz-Checksum-Mode"}), do: (*handler).getObject},
		{target: target{head, onObject}, params: join(readParams, []string{"partNumber"}), headers: join(readConditions, []string{"Range", "If-Range", "X-Amz-Checksum-Mode"}), do: (*handler).getObject},
		// GetObjectAttributes
		{target: target{get, onObject}, sub: "attributes", params: []string{"versionId"}, headers: []string{"X-Amz-Object-Attributes", "X-Amz-Max-Parts", "X-Amz-Part-Number-Marker"}, do: (*handler).getAttributes},
		// PutObject, CopyObject, DeleteObject
		{target: target{put, onObject}, sums: sumOfData, headers: join(attributeHeaders, writeConditions), grows: true, do: (*handler).putObject},
		{target: target{put, onObject}, header: "X-Amz-Copy-Source", headers: join(attributeHeaders, writeConditions, copyHeaders, []string{"X-Amz-Metadata-Directive", "X-Amz-Tagging-Directive", "X-Amz-Checksum-Algorithm"}), grows: true, do: (*handler).copyObject},
		{target: target{del, onObject}, params: []string{"versionId"}, headers: []string{"If-Match", "X-Amz-If-Match-Last-Modified-Time", "X-Amz-If-Match-Size", "X-Amz-Bypass-Governance-Retention"}, do: (*handler).deleteObject},
		// GetObjectTagging, PutObjectTagging, DeleteObjectTagging
		{target: target{get, onObject}, sub: "tagging", params: []string{"versionId"}, do: (*handler).getTagging},
		{target: target{put, onObject}, sub: "tagging", params: []string{"versionId"}, do: (*handler).putTagging},
		{target: target{del, onObject}, sub: "tagging", params: []string{"versionId"}, do: (*handler).deleteTagging},
		// GetObjectAcl, PutObjectAcl
		{target: target{get, onObject}, sub: "acl", params: []string{"versionId"}, do: (*handler).getObjectACL},
		{target: target{put, onObject}, sub: "acl", params: []string{"versionId"}, headers: []string{"X-Amz-Acl"}, do: (*handler).putACL},
		// GetObjectRetention, GetObjectLegalHold
		{target: target{get, onObject}, sub: "retention", params: []string{"versionId"}, do: unset("NoSuchObjectLockConfiguration", "object lock")},
		{target: target{get, onObject}, sub: "legal-hold", params: []string{"versionId"}, do: unset("NoSuchObjectLockConfiguration", "object lock")},
		// CreateMultipartUpload, UploadPart, UploadPartCopy, ListParts,
		// CompleteMultipartUpload, AbortMultipartUpload
		{target: target{post, onObject}, sub: "uploads", headers: join(attributeHeaders, writeConditions, []string{"X-Amz-Checksum-Algorithm", "X-Amz-Checksum-Type"}), grows: true, do: (*handler).createUpload},
		{target: target{put, onObject}, sub: "uploadId", params: []string{"partNumber"}, sums: sumOfData, grows: true, do: (*handler).putPart},
		{target: target{put, onObject}, sub: "uploadId", header: "X-Amz-Copy-Source", params: []string{"partNumber"}, headers: join(copyHeaders, []string{"X-Amz-Copy-Source-Range"}), grows: true, do: (*handler).copyPart},
		{target: target{get, onObject}, sub: "uploadId", params: []string{"max-parts", "part-number-marker", "encoding-type"}, do: (*handler).listParts},
		{target: target{post, onObject}, sub: "uploadId", sums: sumOfObject, headers: join(writeConditions, []string{"X-Amz-Checksum-Type", "X-Amz-Mp-Object-Size"}), do: (*handler).completeUpload},
		{target: target{del, onObject}, sub: "uploadId", do: (*handler).abortUpload},
	}
}

func operationsByTarget(all []*operation) map[target][]*operation {
	by := map[target][]*operation{}
	for _, op := range all {
		by[op.target] = append(by[op.target], op)
	}
	return by
}

// find returns the operation that a request asks for.
func (h *handler) find(r *request) (*operation, error) {
	t := target{r.Method, onService}
	switch {
	case r.key != "":
		t.on = onObject
	case r.bucket != "":
		t.on = onBucket
	}
	var found *operation
	for _, op := range h.operations[t] {
		if op.sub != "" && !r.params.has(op.sub) || op.header != "" && r.Header.Get(op.header) == "" {
			continue
		}
		if found == nil || rank(op) > rank(found) {
			found = op
		}
	}
	if found == nil {
		return nil, notImplemented("%s is not supported here.", r.Method)
	}
	return found, nil
}

// rank orders operations by how much selects them.
func rank(op *operation) int {
	n := 0
	if op.sub != "" {
		n += 2
	}
	if op.header != "" {
		n++
	}
	return n
}

// ignoredHeaders say nothing about what is to be done, or are dealt with for
// all operations alike.
var ignoredHeaders = []string{
	"X-Amz-Content-Sha256", "X-Amz-Date", "X-Amz-Decoded-Content-Length", "X-Amz-Trailer", "X-Amz-User-Agent",
	"X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Request-Payer", "X-Amz-Expected-Bucket-Owner", "X-Amz-Security-Token", "X-Amz-Te",
	"X-Amz-Checksum-Crc32", "X-Amz-Checksum-Crc32c", "X-Amz-Checksum-Crc64nvme", "X-Amz-Checksum-Md5", "X-Amz-Checksum-Sha1",
	"X-Amz-Checksum-Sha256", "X-Amz-Checksum-Sha512", "X-Amz-Checksum-Xxhash64", "X-Amz-Checksum-Xxhash3", "X-Amz-Checksum-Xxhash128",
}

// allows refuses a request that says more than its operation knows.
func (op *operation) allows(r *request) error {
	for _, p := range r.params {
		if p[0] != op.sub && p[0] != "x-id" && !slices.Contains(op.params, p[0]) {
			return notImplemented("The query parameter %s is not supported here.", p[0])
		}
	}
	for name := range r.Header {
		switch {
		case strings.HasPrefix(name, "X-Amz-"):
			if slices.Contains(ignoredHeaders, name) || strings.HasPrefix(name, checksumPrefix) && op.sums == sumOfData {
				continue
			}
		case strings.HasPrefix(name, "If-"):
			if op.method == http.MethodGet || op.method == http.MethodHead {
				continue // a listing is an answer to any condition
			}
		case name == "Content-Range": // RFC 9110, section 14.5
			if op.method != http.MethodPut {
				continue
			}
		default:
			continue
		}
		if name != op.header && !slices.ContainsFunc(op.headers, func(known string) bool {
			prefix, all := strings.CutSuffix(known, "*")
			return known == name || all && strings.HasPrefix(name, prefix)
		}) {
			return notImplemented("The header %s is not supported here.", strings.ToLower(name))
		}
	}
	return checkPromises(r)
}

// checkPromises refuses headers whose value asks for what would not be kept.
func checkPromises(r *request) error {
	h := r.Header
	if owner := h.Get("X-Amz-Expected-Bucket-Owner"); owner != "" && owner != ownerID {
		return newError(http.StatusForbidden, codeAccessDenied, "The bucket belongs to %q.", ownerID)
	}
	if owner := h.Get("X-Amz-Source-Expected-Bucket-Owner"); owner != "" && owner != ownerID {
		return newError(http.StatusForbidden, codeAccessDenied, "The bucket of the source belongs to %q.", ownerID)
	}
	for _, check := range []struct {
		header  string
		allowed []string
		err     *apiError
	}{
		// The owner of a bucket owns all in it, and nobody else is known.
		{"X-Amz-Acl", []string{"private", "bucket-owner-full-control", "bucket-owner-read"}, badRequest("AccessControlListNotSupported", "Buckets and objects are private here; other access control lists are not supported.")},
		{"X-Amz-Object-Ownership", []string{"BucketOwnerEnforced"}, notImplemented("All in a bucket belongs to its owner.")},
		{classHeader, storageClasses, badRequest("InvalidStorageClass", "The storage class you specified is not valid: it is one of %s.", strings.Join(storageClasses, ", "))},
		// To the client the disk is the server's affair, as AES256 says.
		{"X-Amz-Server-Side-Encryption", []string{"AES256"}, notImplemented("Objects are not encrypted with keys here.")},
		{"X-Amz-Server-Side-Encryption-Bucket-Key-Enabled", []string{"false"}, notImplemented("Objects are not encrypted with keys here.")},
		{"X-Amz-Bucket-Object-Lock-Enabled", []string{"false"}, notImplemented("Objects cannot be locked here.")},
		{"X-Amz-Checksum-Mode", []string{"ENABLED", "DISABLED"}, badRequest(codeInvalidArgument, "x-amz-checksum-mode must be ENABLED.")},
	} {
		if value := h.Get(check.header); value != "" && !slices.ContainsFunc(check.allowed, func(a string) bool { return strings.EqualFold(a, value) }) {
			return check.err
		}
	}
	// There are no versions but the one that an unversioned bucket has.
	if r.params.has("versionId") && r.query("versionId") != "null" {
		return badRequest(codeInvalidArgument, "Invalid version id specified.")
	}
	return nil
}
