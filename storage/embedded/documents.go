package embedded

import (
	"encoding/xml"
	"time"

	"github.com/iterait/shepherd/storage/embedded/internal/folder"
)

const (
	namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
	// ownerID owns all buckets and objects.
	ownerID = "shepherd"
)

// wireTime is a time as S3 writes it in XML.
func wireTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func quote(etag string) string { return `"` + etag + `"` }

type ownerXML struct{ ID, DisplayName string }

var owner = ownerXML{ownerID, ownerID}

type locationXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ LocationConstraint"`
}

type versioningXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ VersioningConfiguration"`
}

type loggingXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ BucketLoggingStatus"`
}

type notificationXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ NotificationConfiguration"`
}

type accelerateXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ AccelerateConfiguration"`
}

type requestPaymentXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ RequestPaymentConfiguration"`
	Payer   string
}

type ownershipXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ OwnershipControls"`
	Rule    []ownershipRule
}

type ownershipRule struct{ ObjectOwnership string }

type granteeXML struct {
	Namespace       string `xml:"xmlns:xsi,attr"`
	Type            string `xml:"xsi:type,attr"`
	ID, DisplayName string
}

type grantXML struct {
	Grantee    granteeXML
	Permission string
}

type aclXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ AccessControlPolicy"`
	Owner   ownerXML
	Grants  []grantXML `xml:"AccessControlList>Grant"`
}

// ownerACL gives all rights to the owner.
func ownerACL() aclXML {
	return aclXML{Owner: owner, Grants: []grantXML{{
		granteeXML{"http://www.w3.org/2001/XMLSchema-instance", "CanonicalUser", ownerID, ownerID}, "FULL_CONTROL",
	}}}
}

// fixed answers with a document about a bucket that is there.
func fixed(document any) func(*handler, *request) error {
	return func(h *handler, r *request) error {
		if _, err := h.store.StatBucket(r.bucket); err != nil {
			return err
		}
		return writeXML(r.w, r.Request, document)
	}
}

// unset answers that something is not configured for a bucket or object that is
// there.
func unset(code, what string) func(*handler, *request) error {
	return func(h *handler, r *request) error {
		if err := h.mustExist(r); err != nil {
			return err
		}
		return newError(404, code, "There is no %s.", what)
	}
}

// mustExist returns an error unless the bucket, and object if there is a key, is
// there.
func (h *handler) mustExist(r *request) error {
	if r.key == "" {
		_, err := h.store.StatBucket(r.bucket)
		return err
	}
	_, err := h.store.Stat(r.bucket, r.key)
	return err
}

func (h *handler) getObjectACL(r *request) error {
	if err := h.mustExist(r); err != nil {
		return err
	}
	return writeXML(r.w, r.Request, ownerACL())
}

// putACL takes the access control list that everything has.
func (h *handler) putACL(r *request) error {
	if err := h.mustExist(r); err != nil {
		return err
	}
	body, err := r.readBody()
	if err != nil {
		return err
	}
	if r.Header.Get("X-Amz-Acl") == "" && len(body) > 0 {
		var in aclXML
		if err := xml.Unmarshal(body, &in); err != nil {
			return badRequest("MalformedACLError", "The access control list cannot be read: %v.", err)
		}
		for _, g := range in.Grants {
			if g.Grantee.ID != ownerID || g.Permission != "FULL_CONTROL" {
				return badRequest("AccessControlListNotSupported", "Buckets and objects are private here; other access control lists are not supported.")
			}
		}
	}
	return nil
}

// partsCount is the number of parts of a multipart object; 0 for any other.
func partsCount(info *folder.Info) int {
	n := 0
	for _, run := range info.Parts {
		n += run.Count
	}
	return n
}
