package s3

import (
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
)

// features are what some S3 servers lack. The first request that needs a feature finds
// out, and the features that are missing are not used again.
type features struct {
	// noConditions: conditional PUT is not supported.
	noConditions atomic.Bool
	// noBatchDelete: DeleteObjects is not supported.
	noBatchDelete atomic.Bool
	// otherETags: a listing has other ETags than GET and HEAD.
	otherETags atomic.Bool
	// noUploadList: multipart uploads cannot be listed.
	noUploadList atomic.Bool
	// reclaims: creating a bucket that the account has already succeeds, as on AWS in
	// us-east-1 and on Ceph. refuses: it is refused. Neither is set before the first bucket
	// has been created.
	reclaims, refuses atomic.Bool
}

// lacks records that storage lacks a feature, and logs it once.
func (o *objects) lacks(feature *atomic.Bool, what, instead string) {
	if !feature.Swap(true) {
		o.log.Warn("Storage lacks a feature; shepherd works without it", "url", o.url, "feature", what, "instead", instead)
	}
}

// unsupported reports whether an error says that the server does not implement the
// request.
func unsupported(err error) bool {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.StatusCode {
	case http.StatusNotImplemented, http.StatusMethodNotAllowed:
		return true
	}
	return answer.Code == minio.NotImplemented || answer.Code == minio.MethodNotAllowed
}
