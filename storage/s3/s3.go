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
// What is sent is covered by its SHA-256, which is part of the request's
// signature: over plain HTTP as over TLS the server refuses what arrives
// changed. The hash is taken from the page cache before the file is sent, which
// is cheaper than signing it chunk by chunk and lets every S3 server check it.
// What is fetched is bound to one version of the file by its ETag and to its
// length; a connection that breaks is continued where it broke.
//
// # Tries
//
// A request is tried a few times within a few seconds. That keeps answers to
// clients quick while storage is down; who must get through in the end, as at a
// job's end, calls again. Seconds count from when a request last made progress.
// A large upload or download that broke off goes on where it stopped.
//
// # Servers
//
// Only what every S3 server can do is needed. What is better where it is known,
// and what is done without it, is in features.go.
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
	// CAFile names a file with the certificates, in PEM, of who signed the
	// server's; empty: those that the machine trusts.
	CAFile string
	// Addressing says where the bucket's name goes: "path", "host" (virtual-hosted
	// style), or "auto", which is the host for AWS alone. Empty is "auto".
	Addressing string
	// Direct is for a server that no proxy is to stand before.
	Direct bool
	// Bucket holds all jobs, each below ID/, and must be there. Empty means a
	// bucket per job, named by its id.
	Bucket string
	// Region is the one to sign for; by default what the URL of an AWS endpoint
	// says, else us-east-1.
	Region string
	// Parallel is how many requests one Stage or Collect has under way; 8.
	Parallel int
	// Tries is how often a request is tried at most; 4.
	Tries int
	// Patience is how long tries may bring nothing forward before a request has
	// failed; 3 s.
	Patience time.Duration
	// Stall is how long a request may stand still before it counts as failed; 10 s.
	Stall time.Duration
	// Submissions is a folder that remembers submissions under way, so that one cut
	// short by a kill can be made again; it is made where missing. Empty: they are
	// remembered in memory only.
	Submissions string
	// Shared says that other daemons make places, too: a job's bucket that is empty is
	// then taken for what one of them has left that was killed, since it alone would
	// remember.
	Shared bool
	// Observe is told of every request that was made, tried again or not: what it
	// was for (one of Operations), how long its answer took to come (to begin, of a
	// file that is fetched) and what it was, as the Store's errors are. It is called
	// from many goroutines and returns at once. It may be nil.
	Observe func(op string, took time.Duration, err error)
	// Log may be nil.
	Log *slog.Logger
}

// Operations are what requests are made for.
func Operations() []string {
	return []string{"exists", "make_bucket", "remove_bucket", "put", "begin_upload", "complete_upload", "list_uploads", "list_parts", "get", "copy", "list", "delete", "ping"}
}

// Store implements storage.Store.
type Store struct {
	url       string
	accessKey string
	bucket    string
	layout    places.Layout
	stager    places.Stager
	parallel  int
	tries     int
	patience  time.Duration
	stall     time.Duration
	log       *slog.Logger
	observe   func(op string, took time.Duration, err error)

	client    *minio.Core
	transport *http.Transport
	// reclaims says that the server answers success to making a bucket of one's
	// own that is there already, as AWS does in us-east-1.
	reclaims    bool
	shared      bool
	submissions *submissions // with a bucket per job
	// hashing holds a place per hash that is being computed; see hash.
	hashing  chan struct{}
	features features
	// pingBucket is the name of no bucket.
	pingBucket string
}

var _ storage.Store = (*Store)(nil)

const defaultRegion = "us-east-1"

// New makes a Store. It sends no request: storage may be down.
func New(c Config) (*Store, error) {
	options, endpoint, err := c.options()
	if err != nil {
		return nil, err
	}
	amazon := s3utils.IsAmazonEndpoint(url.URL{Scheme: "https", Host: endpoint})
	s := &Store{
		url:        c.URL,
		accessKey:  c.AccessKey,
		bucket:     c.Bucket,
		layout:     places.Layout{Bucket: c.Bucket},
		parallel:   orDefault(c.Parallel, 8),
		tries:      orDefault(c.Tries, 4),
		patience:   orDefault(c.Patience, 3*time.Second),
		stall:      orDefault(c.Stall, 10*time.Second),
		log:        c.Log,
		observe:    c.Observe,
		reclaims:   amazon && options.Region == defaultRegion,
		shared:     c.Shared,
		pingBucket: "shepherd-ping-" + strings.ToLower(rand.Text()),
		hashing:    make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
	}
	s.stager.Layout, s.stager.Parallel, s.stager.Fetch = s.layout, s.parallel, s.fetch
	s.stager.List = func(ctx context.Context, id job.ID) iter.Seq2[storage.Info, error] { return s.list(ctx, id, "", 0) }
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.observe == nil {
		s.observe = func(string, time.Duration, error) {}
	}
	if s.submissions, err = openSubmissions(c.Submissions); err != nil {
		return nil, err
	}
	s.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       30 * time.Second, // below any server's, or requests meet closed connections
		ReadBufferSize:        32 << 10,
		WriteBufferSize:       32 << 10,
		ExpectContinueTimeout: time.Second,
		// Files are bytes; whatever encoding they carry stays.
		DisableCompression: true,
		// No ResponseHeaderTimeout: each request is watched by what it is; see try.
	}
	if c.Direct {
		s.transport.Proxy = nil
	}
	if c.CAFile != "" {
		if s.transport.TLSClientConfig, err = trusting(c.CAFile); err != nil {
			return nil, err
		}
	}
	options.Transport = s.transport
	if s.client, err = minio.NewCore(endpoint, options); err != nil {
		return nil, fmt.Errorf("storage.url %q: %w", c.URL, err)
	}
	return s, nil
}

// options are those of a client of the storage, whose host and port is the endpoint.
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

// trusting is a configuration that trusts the certificates in a file.
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

// Close closes idle connections. The Store can still be used.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
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

// inputName is the file that Init writes.
const inputName = job.InputDir + "/" + job.DefaultInput
