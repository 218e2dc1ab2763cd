package image

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/iterait/shepherd/internal/testenv"
	"github.com/iterait/shepherd/job"
)

// BenchmarkPull pulls and unpacks an image of 8 layers from a registry on this
// machine, with ours and with containerd's own command line, and then one that
// shares 7 of the layers. BENCH_IMAGE_MIB is the size, 256 where it is not set.
func BenchmarkPull(b *testing.B) {
	mebibytes := 256
	if s := os.Getenv("BENCH_IMAGE_MIB"); s != "" {
		var err error
		if mebibytes, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	registry := testenv.StartRegistry(b, testenv.RegistryConfig{})
	var layers []v1.Layer
	for i := range 9 {
		layers = append(layers, testenv.RandomLayer(b, "data/"+strconv.Itoa(i), mebibytes*mib/8, uint64(i)))
	}
	registry.Push(b, "model:v1", testenv.Image(b, v1.Config{}, layers[:8]...))
	registry.Push(b, "model:v2", testenv.Image(b, v1.Config{}, append(layers[:7:7], layers[8])...))

	b.Run("ctr", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			daemon := testenv.StartContainerd(b)
			b.StartTimer()
			daemon.Ctr(b, namespace, "images", "pull", "--plain-http", registry.Host+"/model:v1")
		}
	})
	for _, run := range []struct{ name, before, version string }{{"shepherd", "", "v1"}, {"shepherd 7 of 8 layers here", "v1", "v2"}, {"shepherd all here", "v1", "v1"}} {
		b.Run(run.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s, done := benchStore(b, registry)
				if run.before != "" {
					benchEnsure(b, s, run.before)
				}
				registry.Requests()
				b.StartTimer()
				benchEnsure(b, s, run.version)
				b.StopTimer()
				b.ReportMetric(float64(testenv.BlobBytes(registry.Requests(), ""))/mib, "MiB-fetched")
				done()
				b.StartTimer()
			}
		})
	}
}

func benchEnsure(b *testing.B, s *Store, version string) {
	b.Helper()
	if _, err := s.Ensure(context.Background(), job.Model{Name: "model", Version: version}, nil); err != nil {
		b.Fatal(err)
	}
}

func benchStore(b *testing.B, registry *testenv.Registry) (*Store, func()) {
	b.Helper()
	daemon := testenv.StartContainerd(b)
	client, err := Connect(b.Context(), daemon.Address, namespace, nil)
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{Client: client, Registry: Registry{URL: registry.URL}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	return s, func() {
		s.Close()
		client.Close()
	}
}
