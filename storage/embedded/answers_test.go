package embedded_test

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAnswersToWrongRequests makes mistakes and wants the errors that S3 documents for them.
func TestAnswersToWrongRequests(t *testing.T) {
	s := start(t, t.TempDir())
	unchanged := precious(t, s, "answers")
	answer, text := s.do("POST", "/answers/upload", "uploads", nil, nil)
	wantAnswer(t, answer, text, 200, "UploadId")
	var begun struct{ UploadId string }
	if err := xml.Unmarshal(text, &begun); err != nil {
		t.Fatal(err)
	}
	upload := "uploadId=" + begun.UploadId
	answer, text = s.do("PUT", "/answers/upload", "partNumber=1&"+upload, nil, []byte("x"))
	wantAnswer(t, answer, text, 200, "")
	part := func(inner string) string {
		return "<CompleteMultipartUpload><Part>" + inner + "</Part></CompleteMultipartUpload>"
	}
	partWith := func(more string) string {
		return part("<PartNumber>1</PartNumber><ETag>" + answer.Header.Get("ETag") + "</ETag>" + more)
	}
	whole := partWith("")
	for _, test := range []struct {
		what, method, path, query string
		header                    http.Header
		body                      string
		status                    int
		code                      string
	}{
		{"a part without ETag", "POST", "/answers/upload", upload, nil, part("<PartNumber>1</PartNumber>"), 400, "MalformedXML"},
		{"a part without number", "POST", "/answers/upload", upload, nil, part("<ETag>x</ETag>"), 400, "MalformedXML"},
		{"a negative part number", "POST", "/answers/upload", upload, nil, part("<PartNumber>-4</PartNumber><ETag>x</ETag>"), 400, "InvalidArgument"},
		{"another ETag", "POST", "/answers/upload", upload, nil, part("<PartNumber>1</PartNumber><ETag>x</ETag>"), 400, "InvalidPart"},
		{"a part's checksum that is none", "POST", "/answers/upload", upload, nil, partWith("<ChecksumCRC64NVME>x</ChecksumCRC64NVME>"), 400, "InvalidArgument"},
		{"two checksums of a part", "POST", "/answers/upload", upload, nil,
			partWith("<ChecksumCRC64NVME>M3eFcAZSQlc=</ChecksumCRC64NVME><ChecksumCRC32>NhCmhg==</ChecksumCRC32>"), 400, "InvalidArgument"},
		{"a part's checksum by another algorithm", "POST", "/answers/upload", upload, nil, partWith("<ChecksumCRC32>NhCmhg==</ChecksumCRC32>"), 400, "BadDigest"},
		{"a part's checksum that is another's", "POST", "/answers/upload", upload, nil, partWith("<ChecksumCRC64NVME>M3eFcAZSQlc=</ChecksumCRC64NVME>"), 400, "InvalidPart"},
		{"a body that is no form", "POST", "/answers", "", nil, "x", 412, "PreconditionFailed"},
		{"a form without boundary", "POST", "/answers", "", http.Header{"Content-Type": {"multipart/form-data"}}, "x", 400, "MalformedPOSTRequest"},
		{"a negative size", "POST", "/answers/upload", upload, http.Header{"X-Amz-Mp-Object-Size": {"-1"}}, whole, 400, "InvalidRequest"},
		{"no type of checksum", "POST", "/answers/upload", upload, http.Header{"X-Amz-Checksum-Type": {"HALF"}}, whole, 400, "InvalidRequest"},
		{"a copied range past the end", "PUT", "/answers/upload", "partNumber=2&" + upload,
			http.Header{"X-Amz-Copy-Source": {"answers/o"}, "X-Amz-Copy-Source-Range": {"bytes=0-8"}}, "", 400, "InvalidArgument"},
		{"a copy with no algorithm", "PUT", "/answers/copy", "", http.Header{"X-Amz-Copy-Source": {"answers/none"}, "X-Amz-Checksum-Algorithm": {"SHA3"}}, "", 400, "InvalidRequest"},
		{"part 0", "GET", "/answers/none", "partNumber=0", nil, "", 400, "InvalidArgument"},
		{"no attributes", "GET", "/answers/o", "attributes", nil, "", 400, "InvalidRequest"},
		{"too many buckets", "GET", "/", "max-buckets=10001", nil, "", 400, "InvalidArgument"},
		{"a redirection to nowhere", "PUT", "/answers/o", "", http.Header{"X-Amz-Website-Redirect-Location": {"nowhere"}}, "x", 400, "InvalidRedirectLocation"},
		{"tags of other characters", "PUT", "/answers/o", "tagging", nil, "<Tagging><TagSet><Tag><Key>a!</Key><Value></Value></Tag></TagSet></Tagging>", 400, "InvalidTag"},
		{"values of other characters", "PUT", "/answers", "tagging", nil, "<Tagging><TagSet><Tag><Key>a</Key><Value>(b)</Value></Tag></TagSet></Tagging>", 400, "InvalidTag"},
	} {
		answer, text := s.do(test.method, test.path, test.query, test.header, []byte(test.body))
		if answer.StatusCode != test.status || !strings.Contains(string(text), "<Code>"+test.code+"</Code>") {
			t.Errorf("%s: %s %s, want %d %s", test.what, answer.Status, text, test.status, test.code)
		}
		unchanged(test.what)
	}
	answer, text = s.do("POST", "/answers/upload", upload, nil, []byte(whole))
	wantAnswer(t, answer, text, 200, "")
}

// TestCopiesWithAnotherChecksum copies an object, to itself too, and has its checksum
// computed by another algorithm.
func TestCopiesWithAnotherChecksum(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "recomputed")
	answer, text := s.do("PUT", "/"+b+"/o", "", nil, []byte("hello"))
	wantAnswer(t, answer, text, 200, "")
	for _, to := range []string{"copy", "o"} {
		answer, text := s.do("PUT", "/"+b+"/"+to, "", http.Header{"X-Amz-Copy-Source": {b + "/o"}, "X-Amz-Checksum-Algorithm": {"sha1"}}, nil)
		wantAnswer(t, answer, text, 200, "<ChecksumSHA1>qvTGHdzF6KLavt4PO0gs2a6pQ00=</ChecksumSHA1>")
		answer, text = s.do("GET", "/"+b+"/"+to, "", http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}, nil)
		wantAnswer(t, answer, text, 200, "hello")
		if got := answer.Header.Get("X-Amz-Checksum-Sha1"); got != "qvTGHdzF6KLavt4PO0gs2a6pQ00=" || answer.Header.Get("X-Amz-Checksum-Crc64nvme") != "" {
			t.Errorf("%s: %v", to, answer.Header)
		}
	}
	answer, text = s.do("PUT", "/"+b+"/o", "", http.Header{"X-Amz-Copy-Source": {b + "/o"}, "X-Amz-Checksum-Algorithm": {"SHA1"}}, nil)
	wantAnswer(t, answer, text, 400, "InvalidRequest") // nothing would change
}

// TestFormsWithChecksumsAndTags stores the file of a form that says more of it.
func TestFormsWithChecksumsAndTags(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "forms-more")
	soon := time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	send := func(key string, fields ...[2]string) (*http.Response, []byte) {
		conditions := []string{fmt.Sprintf(`{"bucket": %q}`, b), fmt.Sprintf(`{"key": %q}`, key), `["starts-with", "$tagging", ""]`, `["starts-with", "$x-amz-checksum-algorithm", ""]`}
		document := fmt.Sprintf(`{"expiration": %q, "conditions": [%s]}`, soon, strings.Join(conditions, ","))
		return s.postForm(b, signForm(document, append(fields, [2]string{"key", key})...), "x", "hello")
	}
	answer, text := send("tags", [2]string{"tagging", "<Tagging><TagSet><Tag><Key>env</Key><Value>test</Value></Tag></TagSet></Tagging>"})
	wantAnswer(t, answer, text, 204, "")
	if got := answer.Header.Get("X-Amz-Checksum-Crc64nvme"); got != "M3eFcAZSQlc=" {
		t.Errorf("the form is answered with checksum %q", got)
	}
	answer, text = s.postForm(b, signForm("{}", [2]string{"key", "x"}, [2]string{"", "nameless"}), "x", "hello")
	wantAnswer(t, answer, text, 400, "MalformedPOSTRequest")
	answer, text = s.do("GET", "/"+b+"/tags", "tagging", nil, nil)
	wantAnswer(t, answer, text, 200, "<Key>env</Key><Value>test</Value>")

	for key, test := range map[string]struct {
		fields [][2]string
		status int
	}{
		"right":     {[][2]string{{"x-amz-checksum-algorithm", "SHA1"}, {"x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00="}}, 204},
		"computed":  {[][2]string{{"x-amz-checksum-algorithm", "SHA1"}}, 204},
		"wrong":     {[][2]string{{"x-amz-checksum-algorithm", "SHA1"}, {"x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ0w="}}, 400},
		"different": {[][2]string{{"x-amz-checksum-algorithm", "CRC32"}, {"x-amz-checksum-sha1", "qvTGHdzF6KLavt4PO0gs2a6pQ00="}}, 400},
	} {
		answer, text := send(key, test.fields...)
		wantAnswer(t, answer, text, test.status, "")
		answer, _ = s.do("HEAD", "/"+b+"/"+key, "", http.Header{"X-Amz-Checksum-Mode": {"ENABLED"}}, nil)
		if got := answer.Header.Get("X-Amz-Checksum-Sha1"); test.status == 204 && got != "qvTGHdzF6KLavt4PO0gs2a6pQ00=" || test.status != 204 && answer.StatusCode != 404 {
			t.Errorf("%s: %s, SHA-1 %q", key, answer.Status, got)
		}
	}
}

// TestListingUploadsThatEnd lists uploads of one key in pages, and aborts the last of each
// page before the next: none of the others may be left out.
func TestListingUploadsThatEnd(t *testing.T) {
	s := start(t, t.TempDir())
	b := s.bucket(s.client(nil), "ending")
	for range 5 {
		answer, text := s.do("POST", "/"+b+"/same", "uploads", nil, nil)
		wantAnswer(t, answer, text, 200, "UploadId")
	}
	seen := map[string]bool{}
	for marker := ""; len(seen) < 5; {
		answer, text := s.do("GET", "/"+b, "uploads&max-uploads=2"+marker, nil, nil)
		wantAnswer(t, answer, text, 200, "")
		var page struct {
			NextUploadIdMarker string
			Upload             []struct{ UploadId string }
		}
		if err := xml.Unmarshal(text, &page); err != nil {
			t.Fatal(err)
		}
		if len(page.Upload) == 0 {
			t.Fatalf("the listing ends after %d of 5 uploads", len(seen))
		}
		for _, u := range page.Upload {
			seen[u.UploadId] = true
		}
		last := page.Upload[len(page.Upload)-1].UploadId
		answer, text = s.do("DELETE", "/"+b+"/same", "uploadId="+last, nil, nil)
		wantAnswer(t, answer, text, 204, "")
		marker = "&key-marker=same&upload-id-marker=" + last
	}
}
