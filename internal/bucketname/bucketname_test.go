package bucketname

import (
	"strings"
	"testing"

	"github.com/minio/minio-go/v7/pkg/s3utils"
)

func TestProblem(t *testing.T) {
	for name, want := range map[string]string{
		"abc": "", "a-b.c-d": "", "123": "", strings.Repeat("a", 63): "", "1.2.3": "", "xn--a": "",
		"": "3 to 63", "ab": "3 to 63", strings.Repeat("a", 64): "3 to 63",
		"Abc": "lower-case", "a_b": "lower-case", "a/b": "lower-case", "aéb": "lower-case", "a\x00b": "lower-case",
		"-abc": "begin and end", "abc.": "begin and end", "a..b": "both sides", "a.-b": "both sides", "a-.b": "both sides",
		"10.0.0.1": "IP address", "0.0.00.0": "IP address", "999.1.1.1": "IP address", "1.1.1.1a": "", "1.1.1.1.1": "",
	} {
		if got := Problem(name); got == "" != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q %s; want %q", name, got, want)
		}
	}
}

// FuzzValid compares with a client's rules: what it refuses is refused here.
func FuzzValid(f *testing.F) {
	for _, name := range []string{"abc", "10.0.0.1", "a..b", "a.-b", "A_b", "1.2.3", "192.168.1.1.", "\xff\xff\xff"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if Valid(name) && s3utils.CheckValidBucketNameStrict(name) != nil {
			t.Errorf("%q is valid here, and to a client: %v", name, s3utils.CheckValidBucketNameStrict(name))
		}
	})
}
