package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/iterait/shepherd/internal/testenv"
)

// floor makes only the storage requests of a no-op job, with minio-go.
type floor struct{ client *minio.Client }

func newFloor(b *testing.B, server *testenv.MinIO) floor {
	b.Helper()
	client, err := minio.New(server.URL[len("http://"):], &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""), Region: "us-east-1",
	})
	must(b, err)
	return floor{client}
}

// requests is how many storage requests do makes.
const requests = 7

func (f floor) do(ctx context.Context, bucket string) error {
	if err := f.client.MakeBucket(ctx, bucket, minio.MakeBucketOptions{}); err != nil {
		return err
	}
	if err := f.put(ctx, bucket, "inputs/input", payload); err != nil {
		return err
	}
	for object := range f.client.ListObjectsIter(ctx, bucket, minio.ListObjectsOptions{Recursive: true}) {
		if object.Err != nil {
			return object.Err
		}
	}
	if err := f.get(ctx, bucket, "inputs/input"); err != nil {
		return err
	}
	if err := f.put(ctx, bucket, "outputs/output", payload); err != nil {
		return err
	}
	if err := f.put(ctx, bucket, "job_status.json", payload[:300]); err != nil {
		return err
	}
	return f.get(ctx, bucket, "outputs/output")
}

// own makes the requests that the daemon makes for a job with a small payload: their CPU
// time is the minimum with minio-go.
func (f floor) own(ctx context.Context, bucket string) error {
	if err := f.client.MakeBucket(ctx, bucket, minio.MakeBucketOptions{}); err != nil {
		return err
	}
	for key, text := range map[string]string{"inputs/input": payload, "outputs/output": payload, "job_status.json": payload[:300]} {
		if err := f.put(ctx, bucket, key, text); err != nil {
			return err
		}
	}
	return f.get(ctx, bucket, "outputs/output")
}

func (f floor) put(ctx context.Context, bucket, key, text string) error {
	_, err := f.client.PutObject(ctx, bucket, key, bytes.NewReader([]byte(text)), int64(len(text)), minio.PutObjectOptions{})
	return err
}

func (f floor) get(ctx context.Context, bucket, key string) error {
	object, err := f.client.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer object.Close()
	_, err = io.Copy(io.Discard, object)
	return err
}

// BenchmarkJob runs no-op jobs with a payload of 1 KiB from POST to result, one at a time,
// in turns with the floor.
func BenchmarkJob(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	floor := newFloor(b, server)
	w.start()
	const warm, jobs = 50, 500
	var job, alone []time.Duration
	var cpu, shim, own, least time.Duration
	for i := range warm + jobs {
		if i == warm {
			job, alone, own, least = nil, nil, 0, 0
			cpu, shim = cpuTime(b, w.daemon.Process.Pid), cpuTime(b, w.shim())
		}
		began := time.Now()
		if err := w.do(fmt.Sprintf("job-%d", i), "noop:v1"); err != nil {
			w.fatal("%v", err)
		}
		middle, used := time.Now(), ownTime(b)
		must(b, floor.do(b.Context(), fmt.Sprintf("floor-%d", i)))
		job, alone = append(job, middle.Sub(began)), append(alone, time.Since(middle))
		own += ownTime(b) - used
		used = ownTime(b)
		must(b, floor.own(b.Context(), fmt.Sprintf("least-%d", i)))
		least += ownTime(b) - used
	}
	cpu, shim = cpuTime(b, w.daemon.Process.Pid)-cpu, cpuTime(b, w.shim())-shim
	hoped(b, "CPU time of the daemon", ms(cpu)/jobs, "ms/job", 2)
	note(b, "CPU time of the daemon, of the floor's", float64(cpu)/float64(own), "times")
	note(b, "CPU time of the shim", ms(shim)/jobs, "ms/job")
	note(b, "CPU time of the floor", ms(own)/jobs, "ms/job")
	note(b, "CPU time of the daemon's own requests by minio-go alone", ms(least)/jobs, "ms/job")
	note(b, "POST to result", ms(median(job)), "ms")
	note(b, "floor", ms(median(alone)), "ms")
	atMost(b, "POST to result, of the floor", float64(median(job))/float64(median(alone)), "times", 2)
	note(b, "RSS of the daemon after its work", resident(b, w.daemon.Process.Pid), "MiB")
}

// ownTime returns the CPU time of this process.
func ownTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkSubmitters measures the rate of sixteen clients, each of which waits for the
// result of its job before it submits the next, in turns with the floor's rate with sixteen
// workers.
func BenchmarkSubmitters(b *testing.B) {
	server := testenv.StartMinIO(b)
	w := newWorld(b, server.URL, server.AccessKey, server.SecretKey)
	floor := newFloor(b, server)
	w.start()
	const submitters, rounds, jobs = 16, 5, 320
	var job, alone []float64
	var ratio []float64
	var cpu time.Duration
	for round := range rounds + 1 {
		if round == 1 { // the one before warmed up
			job, alone, ratio = nil, nil, nil
			cpu = cpuTime(b, w.daemon.Process.Pid)
		}
		began := time.Now()
		together(b, submitters, jobs, func(i int) error { return w.do(fmt.Sprintf("job-%d-%d", round, i), "noop:v1") })
		middle := time.Now()
		together(b, submitters, jobs, func(i int) error {
			return floor.do(b.Context(), fmt.Sprintf("floor-%d-%d", round, i))
		})
		job = append(job, jobs/middle.Sub(began).Seconds())
		alone = append(alone, jobs/time.Since(middle).Seconds())
		ratio = append(ratio, 100*job[len(job)-1]/alone[len(alone)-1])
	}
	cpu = cpuTime(b, w.daemon.Process.Pid) - cpu
	note(b, "16 submitters", median(job), "jobs/s")
	note(b, "16 workers of the floor", median(alone), "jobs/s")
	atLeast(b, "16 submitters, of the floor", median(ratio), "%", 60)
	note(b, "CPU time of the daemon with 16 submitters", ms(cpu)/(rounds*jobs), "ms/job")
}

// BenchmarkRequests counts the storage requests of a job, including its client's GET of the
// result.
func BenchmarkRequests(b *testing.B) {
	server := testenv.StartMinIO(b)
	proxy := testenv.StartS3Proxy(b, server.URL)
	w := newWorld(b, proxy.URL, server.AccessKey, server.SecretKey)
	w.start()
	must(b, w.do("warm", "noop:v1"))
	const jobs = 20
	proxy.Reset()
	for i := range jobs {
		must(b, w.do(fmt.Sprintf("job-%d", i), "noop:v1"))
	}
	seen := proxy.Requests()
	atMost(b, "storage requests", float64(len(seen))/jobs, "per job", requests)
	if b.Failed() {
		b.Log(strings.Join(seen, "\n"))
	}
}
