package daemon

import (
	"errors"
	"strings"
	"testing"

	"github.com/iterait/shepherd/config"
)

func TestCheckMounts(t *testing.T) {
	cfg := &config.Config{DataRoot: "/scratch/data", StateDir: "/var/lib/shepherd", Ledger: config.Ledger{Path: "/var/lib/shepherd/ledger.db"}}
	cfg.Storage.Path = "/srv/objects"
	missing := func(points ...string) func(string) (string, error) {
		return func(path string) (string, error) {
			for _, point := range points {
				if strings.HasPrefix(path, point) {
					return point, nil
				}
			}
			return "", nil
		}
	}
	if err := checkMounts(cfg, missing()); err != nil {
		t.Errorf("all are mounted: %v", err)
	}
	err := checkMounts(cfg, missing("/scratch", "/var/lib"))
	var unmounted *UnmountedError
	if !errors.As(err, &unmounted) || unmounted.Key != "state_dir" {
		t.Fatalf("got %v", err)
	}
	if text := err.Error(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "data_root (/scratch/data) lies on /scratch") || !strings.Contains(text, "`mount /var/lib`") {
		t.Errorf("it says %s", text)
	}
	if err := checkMounts(cfg, missing("/srv")); !errors.As(err, &unmounted) || unmounted.Key != "storage.path" {
		t.Errorf("the embedded storage: %v", err)
	}
	cfg.Storage.URL = "https://s3.example.com"
	if err := checkMounts(cfg, missing("/srv")); err != nil {
		t.Errorf("there is no embedded storage: %v", err)
	}
	broken := errors.New("broken")
	if err := checkMounts(cfg, func(string) (string, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
