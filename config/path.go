package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// paths checks that each directory exists or can be created, and that nothing that must be
// kept lies in a directory that is cleaned.
func (ch *checker) paths() {
	type place struct {
		key, path string
		file      bool
	}
	places := []place{{"data_root", ch.DataRoot, false}, {"state_dir", ch.StateDir, false}, {"ledger.path", ch.Ledger.Path, true}}
	if ch.API.Socket != "" {
		places = append(places, place{"api.socket", filepath.Dir(ch.API.Socket), false})
	}
	if ch.embedded() {
		places = append(places, place{"storage.path", ch.Storage.Path, false})
	}
	for _, p := range places {
		if n := ch.at(p.key); n != nil {
			ch.notEmpty(p.key, n.text == "")
		}
		if p.path == "" {
			if p.key == "state_dir" && ch.DataRoot != "" && ch.at(p.key) == nil {
				ch.wrong(ch.near(p.key), p.key, "has no default because HOME is not set; set it, or state_dir")
			}
			continue
		}
		problem := homeProblem(p.path)
		if problem == "" {
			problem = pathProblem(p.path, p.file)
		}
		switch {
		case problem != "":
		case p.key == "data_root":
			problem = systemDirectory(ch.resolve(p.path))
		default:
			problem = ch.cleanedProblem(p.path)
		}
		switch {
		case problem == "":
		case ch.at(p.key) != nil:
			ch.reject(p.key, problem)
		case ch.overridden[p.key]:
			ch.wrong(ch.near(p.key), p.key, "%s given on the command line: %s", show(p.path), problem)
		case !ch.bad("state_dir") && !ch.bad("data_root"): // which defaults follow
			ch.wrong(ch.near(p.key), p.key, "its default %s: %s; set %s", show(p.path), problem, p.key)
		}
	}
}

// homeProblem refuses a path that a shell would expand.
func homeProblem(path string) string {
	if path == "~" || strings.HasPrefix(path, "~/") {
		return "begins with ~, which only a shell replaces; write the whole path, or $HOME/…"
	}
	return ""
}

// systemDirectory rejects the system's own directories as data_root, where the directories
// of sheep could collide with existing ones.
func systemDirectory(path string) string {
	switch path {
	case "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/usr/local",
		"/var", "/var/cache", "/var/lib", "/var/log", "/var/spool":
		return show(path) + " is a directory of the system, and the directories of sheep in it are cleaned at start-up; expected one for shepherd alone, such as /var/lib/shepherd/data"
	}
	return ""
}

// cleanedProblem returns an error message if a path lies in a sheep's directory, which is
// cleaned at start-up; otherwise "".
func (ch *checker) cleanedProblem(path string) string {
	if ch.DataRoot == "" || path == "" {
		return ""
	}
	path = ch.resolve(path)
	for _, s := range ch.Sheep {
		rel, err := filepath.Rel(ch.resolve(s.Dir(ch.DataRoot)), path)
		if err == nil && filepath.IsLocal(rel) {
			return fmt.Sprintf("lies in data_root/%s, the directory of %s in line %d, which is cleaned at start-up; expected a place outside of it", s.Name, s.path, s.section.line)
		}
	}
	return ""
}

// keptPaths checks paths that are only read, and those of sheep: none may lie in a directory
// that is cleaned at start-up.
func (ch *checker) keptPaths() {
	for _, key := range []string{
		"api.tls.cert_file", "api.tls.key_file", "api.tls.client_ca_file",
		"registry.password_file", "registry.docker_config", "registry.ca_file", "storage.secret_key_file", "ledger.password_file",
		"containerd.cni_conf_dir", "containerd.cni_plugin_dirs", "containerd.allowed_mounts", "gpu.cdi_dirs",
	} {
		ch.keptPath(ch.at(key), key)
	}
	if tokens := ch.at("api.tokens"); tokens != nil {
		for i, t := range tokens.items {
			ch.keptPath(t.get("token_file"), fmt.Sprintf("api.tokens[%d].token_file", i))
		}
	}
	for _, s := range ch.Sheep {
		for _, key := range []string{"working_directory", "stdout_file", "stderr_file"} {
			ch.keptPath(s.section.get(key), s.path+"."+key)
		}
		if mounts := s.section.get("mounts"); mounts != nil {
			for i, m := range mounts.items {
				source := *m
				source.text, _, _ = strings.Cut(m.text, ":")
				ch.keptPath(&source, fmt.Sprintf("%s.mounts[%d]", s.path, i))
			}
		}
	}
	if problem := ch.cleanedProblem(ch.file); problem != "" {
		ch.wrong(ch.near("data_root"), "data_root", "this file %s", problem)
	}
}

// keptPath checks a path, or each of a list.
func (ch *checker) keptPath(n *node, path string) {
	if n == nil {
		return
	}
	for i, item := range n.items {
		ch.keptPath(item, fmt.Sprintf("%s[%d]", path, i))
	}
	if n.kind != text || n.text == "" || ch.problems.cover(n, path) {
		return
	}
	problem := homeProblem(n.text)
	if problem == "" {
		problem = ch.cleanedProblem(n.text)
	}
	if problem != "" {
		ch.wrong(n, path, "%s", problem)
	}
}

// pathProblem returns why a directory (or file) does not exist and cannot be created; ""
// otherwise. It creates nothing. A path that this user cannot read is assumed to be valid.
func pathProblem(path string, file bool) string {
	if path == "" {
		return "is empty; expected a path"
	}
	if strings.ContainsRune(path, 0) {
		return "holds a NUL; expected a path"
	}
	p := filepath.Clean(path)
	for first := true; ; first = false {
		info, err := os.Stat(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if target, err := os.Readlink(p); err == nil {
				return fmt.Sprintf("impossible path: %s is a symbolic link to %s, which is not there", show(p), show(target))
			}
		case errors.Is(err, syscall.ENOTDIR):
			// A parent is not a directory; it is found below.
		case errors.Is(err, fs.ErrPermission):
			return ""
		case err != nil:
			return "impossible path: " + errors.Unwrap(err).Error()
		case first && file && info.IsDir():
			return fmt.Sprintf("impossible path: %s is a directory; expected a file", show(p))
		case first && file && info.Mode().IsRegular(), info.IsDir():
			return ""
		case first && file:
			return fmt.Sprintf("impossible path: %s is not a regular file", show(p))
		default:
			return fmt.Sprintf("impossible path: %s is not a directory", show(p))
		}
		p = filepath.Dir(p)
	}
}

func show(path string) string { return strconv.Quote(clip(path)) }

func (ch *checker) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(ch.directory, path)
}

// resolve returns the absolute path with existing symbolic links resolved.
func (ch *checker) resolve(path string) string {
	p, rest := ch.absolute(path), ""
	for {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			return filepath.Join(real, rest)
		}
		if p == filepath.Dir(p) {
			return filepath.Join(p, rest)
		}
		p, rest = filepath.Dir(p), filepath.Join(filepath.Base(p), rest)
	}
}
