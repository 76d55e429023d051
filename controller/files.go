package controller

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// VersionsFile is the name of the file in the store that says which versions are published: {"agent": "v1.2.3",
// "worker": "v1.2.3", "jdk": TEXT}, where TEXT is the third line of java -version (protocol §4.1). A part without a
// version is not published.
const VersionsFile = "versions.json"

// versions are the published versions, "" when nothing is published.
type versions struct {
	Agent  string `json:"agent"`
	Worker string `json:"worker"`
	JDK    string `json:"jdk"`
}

// files is the store of programs and archives that agents download (protocol §1.6.6). Nothing outside its directory
// can be reached through it (weakness W-52). A nil *files is an empty store.
type files struct {
	root *os.Root

	mu        sync.Mutex
	sums      map[string]sum
	published versions
	read      stamp // of VersionsFile when published was read
}

// stamp is the identity of a file's content, as far as it can be told without reading it.
type stamp struct {
	size  int64
	mtime int64
}

type sum struct {
	stamp
	md5 string
}

func openFiles(dir string) (*files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the file store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the file store: %w", err)
	}
	f := &files{root: root, sums: make(map[string]sum)}
	f.changed()
	return f, nil
}

func (f *files) close() error {
	if f == nil {
		return nil
	}
	return f.root.Close()
}

// changed reads VersionsFile again if it is another one than before, and reports whether it was.
func (f *files) changed() bool {
	if f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var now stamp
	if info, err := f.root.Stat(VersionsFile); err == nil {
		now = stamp{info.Size(), info.ModTime().UnixNano()}
	}
	if now == f.read {
		return false
	}
	f.read, f.published = now, versions{}
	data, err := f.root.ReadFile(VersionsFile)
	if err != nil || json.Unmarshal(data, &f.published) != nil {
		f.published = versions{} // half written: it will change again
	}
	return true
}

func (f *files) versions() versions {
	if f == nil {
		return versions{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.published
}

// open opens a regular file of the store.
func (f *files) open(name string) (*os.File, fs.FileInfo, error) {
	if f == nil || name == VersionsFile || strings.HasPrefix(name, objects+"/") || strings.HasPrefix(name, artifactBlobs+"/") || !fs.ValidPath(name) || strings.ContainsRune(name, '\\') {
		return nil, nil, fs.ErrNotExist
	}
	file, err := f.root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, info, nil
}

func (f *files) has(name string) bool {
	file, _, err := f.open(name)
	if err != nil {
		return false
	}
	_ = file.Close()
	return true
}

// md5 returns the digest of an open file; it is computed once for as long as size and time stay the same.
func (f *files) md5(name string, file *os.File, info fs.FileInfo) (string, error) {
	now := stamp{info.Size(), info.ModTime().UnixNano()}
	f.mu.Lock()
	known := f.sums[name]
	f.mu.Unlock()
	if known.md5 != "" && known.stamp == now {
		return known.md5, nil
	}
	h := md5.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	known = sum{now, hex.EncodeToString(h.Sum(nil))}
	f.mu.Lock()
	f.sums[name] = known
	f.mu.Unlock()
	return known.md5, nil
}

func (f *files) digest(name string) string {
	file, info, err := f.open(name)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	digest, err := f.md5(name, file, info)
	if err != nil {
		return ""
	}
	return digest
}

// programFile is the store's name of a program (protocol §1.6.6). amd64 has no suffix.
func programFile(program, os, arch string) string {
	switch {
	case os == "windows":
		return "upgrade/" + program + ".exe"
	case arch == "arm64" || arch == "mips64" && os == "linux":
		return "upgrade/" + program + "_" + os + "_" + arch
	}
	return "upgrade/" + program + "_" + os
}

// jdkFile is the store's name of a JDK archive, jre.zip or jdk17.zip (protocol §1.6.6).
func jdkFile(archive, os, arch string) string {
	if arch == "arm64" && os != "windows" || arch == "mips64" && os == "linux" {
		os += "_" + arch
	}
	return "jre/" + os + "/" + archive
}

const workerFile = "jar/worker-agent.jar"

// wanted says which parts of an agent differ from what is published (protocol §4.1) and can be downloaded.
func (f *files) wanted(a *agent, in wire.UpgradeCheck) (item wire.UpgradeItem) {
	if f == nil || a.OS == "" {
		return item
	}
	published := f.versions()
	if published.Agent != "" && in.GoAgentVersion != published.Agent {
		item.Agent = true
		for _, program := range []string{"upgrader", "devopsDaemon", "devopsAgent"} {
			item.Agent = item.Agent && f.has(programFile(program, a.OS, a.Arch))
		}
	}
	item.Worker = published.Worker != "" && in.WorkerVersion != published.Worker && f.has(workerFile)
	if published.JDK != "" && jdkDiffers(in.JDKVersion, published.JDK) {
		item.JDK = f.has(jdkFile("jdk17.zip", a.OS, a.Arch)) || f.has(jdkFile("jre.zip", a.OS, a.Arch))
	}
	if in.DockerInit.NeedUpgrade {
		digest := f.digest("script/" + a.OS + "/agent_docker_init.sh")
		item.DockerInitFile = digest != "" && digest != in.DockerInit.FileMD5
	}
	return item
}

// download is GET E/upgrade/files/download?file=&eTag= (protocol §1.6.6), with ranges on top. A wrong secret or a
// deleted record is 404 here.
func (s *Server) download(w http.ResponseWriter, r *http.Request, a *agent) {
	s.mu.Lock()
	deleted := a.Status == wire.Deleted
	s.mu.Unlock()
	if deleted {
		refuse(w, http.StatusNotFound, "no such file")
		return
	}
	name := cleanName(r.URL.Query().Get("file"))
	layers, done := s.fetching(a, name)
	defer done()
	s.serveFile(w, r, layers, name)
}
