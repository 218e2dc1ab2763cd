package s3

import (
	"errors"
	"net/http"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
)

// features are what not every S3 server can do. A Store finds out with the first
// request that needs one, and works without it from then on.
type features struct {
	// noConditions: a PUT cannot be made to depend on what is there.
	noConditions atomic.Bool
	// noBatchDelete: files are removed one by one.
	noBatchDelete atomic.Bool
	// otherETags: a listing has other ETags than the files.
	otherETags atomic.Bool
	// noUploadList: uploads that were broken off are not found again.
	noUploadList atomic.Bool
}

// lacks notes that storage cannot do something, and logs it once.
func (s *Store) lacks(feature *atomic.Bool, what, instead string) {
	if !feature.Swap(true) {
		s.log.Warn("Storage lacks a feature; shepherd works without it", "url", s.url, "feature", what, "instead", instead)
	}
}

// unsupported reports whether an error says that storage does not know what was
// asked of it.
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
