package folder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/iterait/shepherd/internal/durable"
)

// Settings are what is configured of a bucket.
type Settings struct {
	Tags map[string]string `json:"tags,omitempty"`
}

func (s *Store) settingsFile(bucket string) string { return filepath.Join(s.settingsDir(), bucket) }

// Settings returns a bucket's settings, or ErrNoBucket.
func (s *Store) Settings(bucket string) (Settings, error) {
	var settings Settings
	if _, err := s.StatBucket(bucket); err != nil {
		return settings, err
	}
	text, err := os.ReadFile(s.settingsFile(bucket))
	if errors.Is(err, os.ErrNotExist) {
		return settings, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &settings)
	}
	if err != nil {
		return settings, fmt.Errorf("read the settings of bucket %s: %w", bucket, err)
	}
	return settings, nil
}

// SetSettings replaces a bucket's settings.
func (s *Store) SetSettings(bucket string, settings Settings) error {
	lock := s.bucketLock(bucket)
	lock.Lock()
	defer lock.Unlock()
	if _, err := s.StatBucket(bucket); err != nil {
		return err
	}
	text, err := json.Marshal(settings)
	if err != nil {
		return fmt.Errorf("write the settings of bucket %s: %w", bucket, err)
	}
	f, err := os.CreateTemp(s.tmp, "settings-")
	if err != nil {
		return fmt.Errorf("write the settings of bucket %s: %w", bucket, err)
	}
	defer os.Remove(f.Name()) // nothing is left of it when the rename worked
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the settings of bucket %s: %w", bucket, err)
	}
	if err := os.Rename(f.Name(), s.settingsFile(bucket)); err != nil {
		return fmt.Errorf("write the settings of bucket %s: %w", bucket, err)
	}
	return durable.SyncDirs(s.settingsDir())
}

// removeSettings removes a bucket's settings; there may be none.
func (s *Store) removeSettings(bucket string) error {
	err := os.Remove(s.settingsFile(bucket))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return durable.SyncDirs(s.settingsDir())
}
