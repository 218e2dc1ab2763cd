// Package s3 keeps jobs' files in S3-compatible storage: the server embedded in
// the daemon, MinIO, Ceph, AWS and the like, all by the same requests.
//
// # Cost
//
// Every request counts: Init is two (make the bucket, put the input), Stage one
// listing and one GET per file that is not empty, Collect one PUT per file,
// SetStatus, Status and Open one each. A listing takes one per 1,000 files.
//
// # Integrity
//
// The SHA-256 of a request's body is part of its signature, so over plain HTTP as
// over TLS the server refuses a body that arrives changed. The hash of a file is
// computed before the file is sent, from the page cache, which is cheaper than
// signing it chunk by chunk and lets every S3 server check it. A download is bound
// to one version of the file by its ETag and its length; when a connection breaks,
// it resumes at that byte.
//
// # Tries
//
// A request is tried a few times within a few seconds, so that clients get an
// answer quickly while storage is down; a caller that must succeed in the end, as
// at a job's end, calls again. The seconds count from the request's last progress.
// A large upload or download that was interrupted resumes where it stopped.
//
// # Servers
//
// Only operations that every S3 server has are required. The optional ones, and
// what is done without them, are in features.go.
package s3

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"github.com/iterait/shepherd/internal/bucketname"
	"github.com/iterait/shepherd/job"
	"github.com/iterait/shepherd/storage"
	"github.com/iterait/shepherd/storage/internal/places"
)

// Config says where storage is and how to use it. URL and the keys are needed;
// zero values of the rest are the defaults.
type Config struct {
	// URL is host[:port] with an optional scheme: http:// and none mean plain
	// HTTP, https:// means TLS.
	URL       string
	AccessKey string
	SecretKey string
	// SessionToken belongs to temporary keys; empty for others.
	SessionToken string
	// CAFile names a PEM file with the certificates of the authorities that may sign
	// the server's; empty: the authorities that the machine trusts.
	CAFile string
	// Addressing says where the bucket's name goes: "path", "host" (virtual-hosted
	// style), or "auto", which is the host for AWS alone. Empty is "auto".
	Addressing string
	// Direct says that no proxy is used, whatever the environment says.
	Direct bool
	// Bucket holds all jobs, each below ID/, and must exist. Empty means a
	// bucket per job, named by its id.
	Bucket string
	// Region is the region that requests are signed for; by default that of an AWS
	// endpoint's URL, else us-east-1.
	Region string
	// Parallel is how many requests one Stage or Collect has under way; 0 is 8.
	Parallel int
	// Tries is how often a request is tried at most; 0 is 4.
	Tries int
	// Patience is how long a request is retried without progress before it has
	// failed; 0 is 3 s.
	Patience time.Duration
	// Stall is how long one try may make no progress before it is ended; 0 is 10 s.
	Stall time.Duration
	// Submissions is a directory in which submissions under way are recorded, so that
	// a client can repeat one that a kill interrupted; it is created where missing.
	// Empty: they are kept in memory only.
	Submissions string
	// Shared says that other daemons use the storage, too: an empty bucket of a job is
	// then treated as left by one of them that was killed, whose Submissions are not
	// known here.
	Shared bool
	// Observe is called after every request, each try by itself: with the operation
	// (one of Operations), the time until its answer (of a download, until the answer
	// began; of a listing, for all its pages without what the reader did between them) and
	// its error, of the same classes as the Store's. It is called from many
	// goroutines and must not block. It may be nil.
	Observe func(op string, took time.Duration, err error)
	// Log may be nil.
	Log *slog.Logger
}

// Operations returns the operations that Config.Observe is called with.
func Operations() []string {
	return []string{"exists", "make_bucket", "remove_bucket", "put", "begin_upload", "complete_upload", "list_uploads", "list_parts", "get", "copy", "list", "delete", "ping"}
}

// Store implements storage.Store: it knows where the files of a job are, and its
// objects how they are stored and fetched.
type Store struct {
	layout  places.Layout
	objects *objects
	stager  places.Stager
	// submissions are those under way, with a bucket per job.
	submissions *submissions
	// shared says that other daemons make places, too; see Config.Shared.
	shared bool
	// pingBucket is a name that no bucket has.
	pingBucket string
	log        *slog.Logger
}

var _ storage.Store = (*Store)(nil)

const defaultRegion = "us-east-1"

// New returns a Store. It sends no request, so storage may be down.
func New(c Config) (*Store, error) {
	options, endpoint, err := c.options()
	if err != nil {
		return nil, err
	}
	log, observe := c.Log, c.Observe
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if observe == nil {
		observe = func(string, time.Duration, error) {}
	}
	transport, err := c.transport()
	if err != nil {
		return nil, err
	}
	options.Transport = &s3Answers{next: transport, url: c.URL}
	client, err := minio.NewCore(endpoint, options)
	if err != nil {
		return nil, fmt.Errorf("storage.url %q: %w", c.URL, err)
	}
	s := &Store{
		layout: places.Layout{Bucket: c.Bucket},
		objects: &objects{
			requester: requester{
				url: c.URL, accessKey: c.AccessKey,
				tries:    orDefault(c.Tries, 4),
				patience: orDefault(c.Patience, 3*time.Second),
				stall:    orDefault(c.Stall, 10*time.Second),
				observe:  observe,
			},
			client: client, transport: transport,
			parallel:  orDefault(c.Parallel, 8),
			hashing:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
			ranges:    make(chan struct{}, maxRanges),
			rangeSize: rangeSize,
			log:       log,
		},
		shared:     c.Shared,
		pingBucket: "shepherd-ping-" + strings.ToLower(rand.Text()),
		log:        log,
	}
	s.stager.Layout, s.stager.Parallel, s.stager.Fetch = s.layout, s.objects.parallel, s.fetch
	s.stager.List = func(ctx context.Context, id job.ID) iter.Seq2[storage.Info, error] { return s.list(ctx, id, "", 0) }
	if s.submissions, err = openSubmissions(c.Submissions); err != nil {
		return nil, err
	}
	return s, nil
}

// transport makes the connections to the storage.
func (c Config) transport() (*http.Transport, error) {
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       30 * time.Second, // below any server's, or requests meet closed connections
		ReadBufferSize:        32 << 10,
		WriteBufferSize:       32 << 10,
		ExpectContinueTimeout: time.Second,
		// A file is stored and fetched as it is, with any encoding it has.
		DisableCompression: true,
		// No ResponseHeaderTimeout: each request has its own limit; see try.
	}
	if c.Direct {
		transport.Proxy = nil
	}
	if c.CAFile != "" {
		var err error
		if transport.TLSClientConfig, err = trusting(c.CAFile); err != nil {
			return nil, err
		}
	}
	return transport, nil
}

// options returns the options of a client of the storage, and its host and port as
// endpoint.
func (c Config) options() (_ *minio.Options, endpoint string, err error) {
	endpoint, secure, err := parseURL(c.URL)
	if err != nil {
		return nil, "", err
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return nil, "", errors.New("storage.access_key and storage.secret_key are needed")
	}
	if c.Bucket != "" {
		if problem := bucketname.Problem(c.Bucket); problem != "" {
			return nil, "", fmt.Errorf("storage.bucket %q %s", c.Bucket, problem)
		}
	}
	address := url.URL{Scheme: "https", Host: endpoint}
	var lookup minio.BucketLookupType
	switch c.Addressing {
	case "", "auto":
		if lookup = minio.BucketLookupPath; s3utils.IsAmazonEndpoint(address) {
			lookup = minio.BucketLookupAuto
		}
	case "path":
		lookup = minio.BucketLookupPath
	case "host":
		lookup = minio.BucketLookupDNS
	default:
		return nil, "", fmt.Errorf("storage.addressing %q must be auto, path or host", c.Addressing)
	}
	region := c.Region
	if region == "" {
		region = s3utils.GetRegionFromURL(address)
	}
	if region == "" {
		region = defaultRegion // set, or every bucket would cost a GetBucketLocation
	}
	return &minio.Options{
		Creds:  credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken),
		Secure: secure, Region: region, BucketLookup: lookup,
		MaxRetries: 1, // try does that
	}, endpoint, nil
}

// trusting returns a TLS configuration that trusts the certificates in a PEM file.
func trusting(file string) (*tls.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("storage.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("storage.ca_file %s holds no certificate in PEM", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// Close closes idle connections and the record of submissions. The Store must not be used
// after it.
func (s *Store) Close() error {
	s.objects.transport.CloseIdleConnections()
	return s.submissions.close()
}

func parseURL(text string) (endpoint string, secure bool, err error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = "http", text
	}
	rest = strings.TrimSuffix(rest, "/")
	if scheme != "http" && scheme != "https" {
		return "", false, fmt.Errorf("storage.url %q: the scheme must be http or https", text)
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return "", false, errors.New("storage.url is not a URL") // which may hold a password, so it is not repeated
	}
	if u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", false, fmt.Errorf("storage.url %q must be [http://|https://]HOST[:PORT] and nothing else", u.Redacted())
	}
	return u.Host, scheme == "https", nil
}

func orDefault[T int | time.Duration](value, otherwise T) T {
	if value <= 0 {
		return otherwise
	}
	return value
}

// inputName is the name of the file that Init writes.
const inputName = job.InputDir + "/" + job.DefaultInput
