package config

import (
	"path/filepath"
	"regexp"
	"slices"

	imageendpoint "github.com/iterait/shepherd/image/endpoint"
)

// checkRegistry checks the section registry, which may be nil.
func checkRegistry(r *report, g *Registry) {
	if g == nil {
		return
	}
	r.missing("registry.url", "the registry's address, such as https://registry.example.com")
	problem := urlProblem(g.URL, "username and password", true)
	if problem == "" {
		if _, err := imageendpoint.Parse(g.URL); err != nil {
			problem = err.Error()
		}
	}
	r.reject("registry.url", problem)
	if (!g.Password.IsZero() || g.PasswordFile != "") && g.Username == "" {
		r.missing("registry.username", "the user that the password is for")
	}
	if !g.Password.IsZero() && g.PasswordFile != "" {
		r.reject("registry.password_file", "is there beside registry.password; remove one of them")
	}
	for _, f := range []struct{ key, path string }{
		{"registry.password_file", g.PasswordFile},
		{"registry.docker_config", g.DockerConfig},
		{"registry.ca_file", g.CAFile},
		{"registry.hosts_dir", g.HostsDir},
	} {
		r.notEmpty(f.key, f.path == "")
		r.expect(f.path == "" || filepath.IsAbs(f.path), f.key, "an absolute path")
	}
}

// containerd's own rules for namespaces; snapshotters' names are like them.
var containerdName = regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)

// checkContainerd checks the section containerd.
func checkContainerd(r *report, c *Containerd) {
	r.expect(filepath.IsAbs(c.Address), "containerd.address", "the absolute path of containerd's socket")
	r.expect(len(c.Namespace) <= 76 && containerdName.MatchString(c.Namespace), "containerd.namespace",
		"a namespace's name: at most 76 letters and digits, with single '.', '_' or '-' between them")
	r.expect(containerdName.MatchString(c.Snapshotter), "containerd.snapshotter", "the name of one of containerd's snapshotters, such as overlayfs")
	r.expect(filepath.IsAbs(c.CNIConfDir), "containerd.cni_conf_dir", "an absolute path")
	relative := func(p string) bool { return !filepath.IsAbs(p) }
	r.expect(!slices.ContainsFunc(c.CNIPluginDirs, relative), "containerd.cni_plugin_dirs", "a list of absolute paths")
	r.expect(!slices.ContainsFunc(c.AllowedMounts, relative), "containerd.allowed_mounts", "a list of absolute paths")
}
