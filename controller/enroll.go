package controller

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

//go:embed install/unix.sh
var unixScript string

//go:embed install/windows.ps1
var windowsScript string

// Seven-digit codes of enrolment. Texts and codes beyond the one of the protocol are ours (protocol Appendix B, U-4).
const (
	codeAgentOnline = 2105058 // the agent is still online (protocol §5.4)
	codeNoToken     = 2105001 // token or key missing, wrong, expired, revoked or used up
	codeNoAgent     = 2105002 // no such agent for this token
)

// hash is what is stored of a token or a key: they have 256 random bits, so one round is enough.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func refuseCode(w http.ResponseWriter, code int, message string) {
	answer(w, http.StatusBadRequest, result{Status: code, Message: &message})
}

// batchInstall is GET X/{os}/batchInstall (protocol §5.3): it makes an agent record, or takes the one of reInstallId if
// that belongs to the token's project (weakness W-54), and answers the install script.
func (s *Server) batchInstall(w http.ResponseWriter, r *http.Request) {
	record, key, err := s.enrol(r.Header.Get(wire.HeaderInstallToken), strings.ToLower(r.PathValue("os")), r.URL.Query().Get("reInstallId"))
	var refused *enrolError
	var input *InputError
	switch {
	case errors.As(err, &refused):
		refuseCode(w, refused.code, refused.text)
	case errors.As(err, &input):
		refuse(w, http.StatusBadRequest, err.Error())
	case err != nil:
		s.internal(w, "make an agent record", err)
	default:
		s.log.Info("Install script fetched", "agent", record.ID, "project", record.Project, "os", record.OS)
		s.sendScript(w, r, record, key)
	}
}

// admitted returns the record of {id} to whom may have its package: the holder of the key in the package address or of
// an install token of the project, or the agent itself. The id alone is not enough (weakness W-53), and an agent that
// is online is refused. Where it returns false it has answered.
func (s *Server) admitted(w http.ResponseWriter, r *http.Request) (Agent, bool) {
	id, project := r.PathValue("id"), r.Header.Get(wire.HeaderProject)
	key := r.URL.Query().Get("key")
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.agents[id]
	may := a != nil && a.Status != wire.Deleted && (project == "" || project == a.Project)
	if may {
		byKey := key != "" && a.LinkHash != "" && millis(time.Now()) < a.LinkEnds && same(hash(key), a.LinkHash)
		token := s.enrolTokens[hash(r.Header.Get(wire.HeaderInstallToken))]
		byToken := token != nil && token.admits(a, time.Now())
		bySecret := same(r.Header.Get(wire.HeaderSecret), string(a.Secret))
		may = byKey || byToken || bySecret
	}
	switch {
	case !may:
		refuseCode(w, codeNoToken, "no package: the key in the address or the install token is missing, wrong, expired or revoked")
		return Agent{}, false
	case a.Status == wire.ImportOK:
		refuseCode(w, codeAgentOnline, "this agent is still online")
		return Agent{}, false
	}
	return a.Agent, true
}

// installScript is GET X/{id}/install: the script of one agent.
func (s *Server) installScript(w http.ResponseWriter, r *http.Request) {
	if a, may := s.admitted(w, r); may {
		s.sendScript(w, r, a, r.URL.Query().Get("key"))
	}
}

func (s *Server) sendScript(w http.ResponseWriter, r *http.Request, a Agent, key string) {
	text, name := unixScript, "install.sh"
	if a.OS == "windows" {
		text, name = windowsScript, "install.ps1"
	}
	attachment(w, name)
	_, _ = io.WriteString(w, fill(text, s.placeholders(r, a, key, true)))
}

// placeholders are the values of a script's and a template's ##names## (protocol §2.2, §5.3). They come from ids that
// we made, from checked texts and from publicURL: none can break out of quotes. The secret is not among them.
func (s *Server) placeholders(r *http.Request, a Agent, key string, download bool) map[string]string {
	gateway := s.publicURL(r)
	address := gateway + wire.PathExternal + "/" + a.ID + "/agent"
	q := url.Values{}
	if key != "" {
		q.Set("key", key)
	}
	query := q.Encode()
	if a.OS != "windows" {
		if query != "" {
			query += "&"
		}
		query += "arch=${ARCH}" // a variable of the script
	}
	if query != "" {
		address += "?" + query
	}
	install := r.URL.Query().Get("installType")
	if install != "SERVICE" && install != "TASK" {
		install = ""
	}
	return map[string]string{"agentId": a.ID, "projectId": a.Project, "gateWay": gateway, "fileGateway": gateway, "landun.env": "PROD",
		"agentCollectorOn": "true", "language": "en_US", "agent_url": address, "enableCheckFiles": fmt.Sprint(download), "installType": install,
		"certificate": s.ownCertificate()}
}

func fill(text string, values map[string]string) string {
	var pairs []string
	for name, value := range values {
		pairs = append(pairs, "##"+name+"##", value)
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

var plainHost = regexp.MustCompile(`^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?$`)

// publicURL is the address by which the caller's machine reaches this controller.
func (s *Server) publicURL(r *http.Request) string {
	if s.opts.PublicURL != "" {
		return strings.TrimRight(s.opts.PublicURL, "/")
	}
	host := r.Host
	if !plainHost.MatchString(host) {
		host = "localhost"
	}
	if r.TLS != nil {
		return "https://" + host
	}
	return "http://" + host
}

// properties is the .agent.properties of a new installation: every key of the template (protocol §2.2).
func properties(a Agent, gateway string) []byte {
	parallel, docker, language := 4, 4, "en_US"
	if a.Parallel != nil {
		parallel = *a.Parallel
	}
	if a.DockerParallel != nil {
		docker = *a.DockerParallel
	}
	if a.Language != "" {
		language = a.Language
	}
	return fmt.Appendf(nil, `devops.project.id=%s
devops.agent.id=%s
devops.agent.secret.key=%s
landun.gateway=%s
landun.fileGateway=%s
devops.parallel.task.count=%d
landun.env=PROD
devops.agent.collectorOn=true
devops.agent.request.timeout.sec=5
devops.agent.detect.shell=true
devops.agent.ignoreLocalIps=127.0.0.1
devops.agent.batch.install=%s
devops.agent.logs.keep.hours=96
devops.docker.parallel.task.count=%d
devops.docker.enable=false
devops.language=%s
devops.imagedebug.portrange=30000-32767
devops.pipeline.enable=%t
`, a.Project, a.ID, string(a.Secret), gateway, gateway, parallel, a.ID, docker, language, a.EnablePipeline != nil && *a.EnablePipeline)
}

// agentPackage is GET X/{id}/agent?arch= (protocol §5.4): .agent.properties, .cert if the data directory has a
// cert.pem, and the programs and archives of the release that the agent will have, or else of the file store.
func (s *Server) agentPackage(w http.ResponseWriter, r *http.Request) {
	a, may := s.admitted(w, r)
	if !may {
		return
	}
	arch := r.URL.Query().Get("arch")
	attachment(w, "agent.zip")
	w.Header().Set("Cache-Control", "no-store")
	zw := zip.NewWriter(w)
	err := addToZip(zw, ".agent.properties", 0o600, bytes.NewReader(properties(a, s.publicURL(r))))
	if cert := s.certificate(); err == nil && len(cert) > 0 {
		err = addToZip(zw, ".cert", 0o644, bytes.NewReader(cert))
	}
	layers := s.packageLayers(a.ID)
	for _, part := range packageParts(a.OS, arch) {
		if err == nil {
			err = s.addPart(zw, layers, part)
		}
	}
	if err == nil {
		err = zw.Close()
	}
	if err != nil { // the header has gone out: without its directory the ZIP is no ZIP
		s.log.Warn("A package was not delivered", "agent", a.ID, "err", err)
		return
	}
	s.log.Info("Package fetched", "agent", a.ID, "project", a.Project, "arch", arch)
}

// part is a file of the store in a package.
type part struct {
	file, name string
	mode       os.FileMode
}

// packageParts are the programs and archives of a package (protocol §5.4); devopsWorker is ours.
func packageParts(system, arch string) []part {
	exe := ""
	if system == "windows" {
		exe = ".exe"
	}
	return []part{
		{programFile("devopsAgent", system, arch), "devopsAgent" + exe, 0o755},
		{programFile("devopsDaemon", system, arch), "devopsDaemon" + exe, 0o755},
		{programFile("devopsWorker", system, arch), "devopsWorker" + exe, 0o755},
		{programFile("upgrader", system, arch), "tmp/upgrader" + exe, 0o755},
		{workerFile, "worker-agent.jar", 0o644},
		{jdkFile("jre.zip", system, arch), "jre.zip", 0o644},
		{jdkFile("jdk17.zip", system, arch), "jdk17.zip", 0o644},
	}
}

func (s *Server) addPart(zw *zip.Writer, layers []*release, p part) error {
	file, err := s.openFor(layers, p.file)
	if errors.Is(err, ErrNotFound) {
		return nil // not in the store, so not in the package
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return addToZip(zw, p.name, p.mode, file)
}

func addToZip(zw *zip.Writer, name string, mode os.FileMode, from io.Reader) error {
	h := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Now()}
	h.SetMode(mode)
	f, err := zw.CreateHeader(h)
	if err == nil {
		_, err = io.Copy(f, from)
	}
	return err
}

// certificate is what new agents shall trust on top of their system's: what the operator put beside the data base, and the
// certificate that the controller made for itself.
func (s *Server) certificate() []byte {
	if s.opts.Dir == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(s.opts.Dir, "cert.pem"))
	if err != nil {
		data = nil
	}
	if s.opts.OwnCertificate {
		own, err := readCertFile(filepath.Join(s.opts.Dir, OwnCertFile))
		if err != nil {
			s.log.Error("The controller's certificate could not be read", "err", err)
			return data
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			data = append(data, '\n')
		}
		data = append(data, own...)
	}
	return data
}

// ownCertificate is the certificate that the controller made for itself, PEM, "" when it has none or it cannot be read.
func (s *Server) ownCertificate() string {
	if !s.opts.OwnCertificate || s.opts.Dir == "" {
		return ""
	}
	cert, err := ReadCertificate(filepath.Join(s.opts.Dir, OwnCertFile))
	if err != nil {
		s.log.Error("The controller's certificate could not be read", "err", err)
		return ""
	}
	return strings.TrimSpace(string(wire.CertificatePEM(cert)))
}

func (s *Server) internal(w http.ResponseWriter, what string, err error) {
	var full *StorageError
	if errors.As(err, &full) {
		refuseUnwritten(w, what, err)
		return
	}
	s.log.Error("A request failed", "what", what, "err", err)
	refuse(w, http.StatusInternalServerError, what+": it did not work; the controller's log says why")
}

// jdkPackage is GET X/{id}/jre: the JDK archive of an agent's system.
func (s *Server) jdkPackage(w http.ResponseWriter, r *http.Request) {
	if a, may := s.admitted(w, r); may {
		s.serveFile(w, r, s.packageLayers(a.ID), jdkFile("jre.zip", a.OS, r.URL.Query().Get("arch")))
	}
}
