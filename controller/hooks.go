package controller

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxHook      = 1 << 20             // bytes of a webhook's body
	keepDelivery = 30 * 24 * time.Hour // a delivery is known again for so long
)

// reservedInput are environment variables that decide what a script runs: a webhook must not set them.
func reservedInput(name string) bool {
	return slices.Contains([]string{"PATH", "ENV", "BASH_ENV", "IFS", "HOME", "SHELL", "SHELLOPTS", "BASHOPTS", "PS4", "PROMPT_COMMAND", "TMPDIR", "WORKSPACE"}, name) ||
		slices.ContainsFunc([]string{"LD_", "DYLD_", "BASH_FUNC", "DEVOPS_", "BK_CI_", "GIT_", "PYTHON", "PERL5", "RUBY", "NODE_", "JAVA_"}, func(p string) bool { return strings.HasPrefix(name, p) })
}

func (h *Webhook) check() error {
	if !secretName.MatchString(h.Secret) {
		return errors.New("webhook: secret must be the name of a secret of the project")
	}
	if len(h.Variables) > maxInputs {
		return fmt.Errorf("webhook: more than %d variables", maxInputs)
	}
	for _, name := range slices.Sorted(maps.Keys(h.Variables)) {
		if !secretName.MatchString(name) || reservedInput(name) {
			return fmt.Errorf("webhook: %q cannot be set from outside", clip(name, 64))
		}
		if at := h.Variables[name]; at == "" || len(at) > 200 {
			return fmt.Errorf("webhook: %s: name a member of the body, as in head_commit.id", name)
		}
	}
	return nil
}

// addInputs puts values that came from outside into the environment of a build's steps. They are written into the
// scripts as quoted texts, which no shell looks into, and not handed to the worker as variables: a worker fills
// variables into the text of a script, where they would be code.
func (s *Spec) addInputs(inputs map[string]string) error {
	if len(inputs) == 0 {
		return nil
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(inputs)) {
		if _, twice := s.Variables[name]; twice || slices.Contains(s.Secrets, name) {
			return fmt.Errorf("webhook: %s is a variable of the build as well", name)
		}
		if !secretName.MatchString(name) || reservedInput(name) {
			return fmt.Errorf("%q cannot be set from outside", clip(name, 64))
		}
		b.WriteString("export " + name + "=" + shellText(inputs[name]) + "\n")
	}
	for i := range s.Steps {
		step := &s.Steps[i]
		first, rest := "", step.Script
		if strings.HasPrefix(rest, "#!") {
			first, rest, _ = strings.Cut(rest, "\n")
			first += "\n"
		}
		if !step.likeSh(first) {
			return fmt.Errorf("step %d: values of a webhook need a shell like sh or bash", i+1)
		}
		if first == "" && step.Shell == "" {
			step.Shell = "sh"
		}
		step.Script = first + b.String() + rest
	}
	return nil
}

// likeSh reports whether a step's shell understands export NAME='…'. first is the script's own #! line, if any.
func (s *Step) likeSh(first string) bool {
	words := strings.Fields(strings.TrimPrefix(first, "#!"))
	if first == "" {
		words = strings.Fields(s.Shell)
		if len(words) == 0 {
			return true
		}
	}
	if len(words) > 1 && path.Base(words[0]) == "env" {
		words = words[1:]
	}
	return len(words) > 0 && slices.Contains([]string{"sh", "bash", "dash", "ash", "ksh", "zsh"}, path.Base(words[0]))
}

// shellText quotes a value for sh. Nothing in it looks like a reference to a worker, either: ${ is written in two parts.
func shellText(value string) string {
	value = clip(strings.ToValidUTF8(strings.ReplaceAll(value, "\x00", ""), "�"), maxInput)
	value = strings.ReplaceAll(value, "\r", "")
	value = strings.ReplaceAll(value, "'", `'\''`)
	return "'" + strings.ReplaceAll(value, "${", "$''{") + "'"
}

// hookValue finds a value in a JSON document by its path: names of members and numbers of elements. What is no text is
// written as JSON; what is not there is empty.
func hookValue(body any, at string) string {
	for part := range strings.SplitSeq(at, ".") {
		switch v := body.(type) {
		case map[string]any:
			body = v[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) {
				return ""
			}
			body = v[i]
		default:
			return ""
		}
	}
	switch v := body.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return jsonText(body)
}

// hookRoutes adds the calls that need no token: signed webhooks, and public badges.
func (s *Server) hookRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /hooks/{name}", s.hook)
	mux.HandleFunc("POST /hooks/{project}/{name}", s.hook)
	mux.HandleFunc("GET /badge/{project}/{file}", s.badge)
}

// hook is POST /hooks/[{project}/]{name}: a body of at most 1 MiB of JSON, signed with the definition's secret in
// X-Hub-Signature-256, with an id of its own in X-GitHub-Delivery, X-Gitea-Delivery or X-Delivery-Id. The same delivery
// starts one run, and is answered with it each time.
func (s *Server) hook(w http.ResponseWriter, r *http.Request) {
	data, read := readUpTo(w, r, maxHook)
	if !read {
		return
	}
	d, err := s.signed(r, data)
	if err != nil {
		var locked *KeyError
		if errors.As(err, &locked) {
			apiAnswer(w, http.StatusServiceUnavailable, map[string]string{"error": "secrets are locked"})
			return
		}
		apiAnswer(w, http.StatusUnauthorized, map[string]string{"error": "there is no such webhook, or the signature is wrong"})
		return
	}
	delivery := cmp.Or(r.Header.Get("X-GitHub-Delivery"), r.Header.Get("X-Gitea-Delivery"), r.Header.Get("X-Delivery-Id"))
	if delivery == "" || len(delivery) > 200 || !utf8.ValidString(delivery) {
		operatorError(w, &InputError{Err: errors.New("the header X-Delivery-Id (or X-GitHub-Delivery, X-Gitea-Delivery) must hold an id of this delivery")})
		return
	}
	if r.Header.Get("X-GitHub-Event") == "ping" {
		reply(w, map[string]string{"definition": d.Name}, nil)
		return
	}
	var body any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&body); err != nil {
		operatorError(w, &InputError{Err: fmt.Errorf("body: %w", err)})
		return
	}
	inputs := make(map[string]string)
	for name, at := range d.Webhook.Variables {
		inputs[name] = hookValue(body, at)
	}
	id, repeated, err := s.deliverHook(d, delivery, inputs)
	var crowd *CrowdError
	switch {
	case errors.As(err, &crowd):
		w.Header().Set("Retry-After", "60")
		apiAnswer(w, http.StatusTooManyRequests, map[string]string{"error": err.Error()})
	case err != nil:
		operatorError(w, err)
	default:
		reply(w, map[string]any{"run": id, "repeated": repeated}, nil)
	}
}

// signed returns the definition of a hook whose signature is right.
func (s *Server) signed(r *http.Request, data []byte) (*definition, error) {
	d, err := s.findDefinition(r.PathValue("project"), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if d.Webhook == nil {
		return nil, ErrNotFound
	}
	values, err := s.secretValues(d.Project, []string{d.Webhook.Secret})
	if err != nil {
		return nil, err
	}
	text, found := strings.CutPrefix(r.Header.Get("X-Hub-Signature-256"), "sha256=")
	said, err := hex.DecodeString(text)
	if err != nil || !found {
		return nil, errors.New("no signature")
	}
	mac := hmac.New(sha256.New, []byte(values[d.Webhook.Secret]))
	_, _ = mac.Write(data) // never fails
	if !hmac.Equal(said, mac.Sum(nil)) {
		return nil, errors.New("a wrong signature")
	}
	return d, nil
}

// deliverHook makes the run of a delivery, or finds the one that it made before. Both are on disk in one transaction.
func (s *Server) deliverHook(d *definition, delivery string, inputs map[string]string) (run string, repeated bool, err error) {
	s.hooks <- struct{}{} // one at a time: two of one delivery see each other
	defer func() { <-s.hooks }()
	err = s.store.each(func(scan func(...any) error) error { return scan(&run) },
		`SELECT run FROM delivery WHERE project = ? AND name = ? AND delivery = ?`, d.Project, d.Name, delivery)
	if err != nil || run != "" {
		return run, run != "", err
	}
	now := time.Now()
	made, err := s.trigger(d, NewRun{Inputs: inputs}, "webhook", func(tx *sql.Tx, r Run) error {
		if _, err := tx.Exec(`DELETE FROM delivery WHERE at < ?`, millis(now.Add(-keepDelivery))); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO delivery (project, name, delivery, at, run) VALUES (?, ?, ?, ?, ?)`, d.Project, d.Name, delivery, millis(now), r.ID)
		return err
	})
	return made.ID, false, err
}

// badge is GET /badge/{project}/{name}.svg: how the newest run of a definition ended, for everybody when its file says
// badge: public.
func (s *Server) badge(w http.ResponseWriter, r *http.Request) {
	name, svg := strings.CutSuffix(r.PathValue("file"), ".svg")
	d, err := s.FindDefinition(r.PathValue("project"), name)
	if err != nil || !svg || d.Badge != "public" {
		refuse(w, http.StatusNotFound, "no such badge")
		return
	}
	word, colour := "no run", "#6e7781"
	if d.LastRun != nil {
		switch word = string(d.LastRun.State); d.LastRun.State {
		case Succeeded:
			word, colour = "passing", "#1a7f37"
		case Failed:
			word, colour = "failing", "#cf222e"
		}
	}
	h := w.Header()
	h.Set("Content-Type", "image/svg+xml")
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Security-Policy", "default-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(badgeSVG(name, word, colour))) // a client that has gone cannot be told so
}

// badgeSVG draws two boxes with a word each. Letters are taken to be 7 pixels wide.
func badgeSVG(name, word, colour string) string {
	left, right := 12+7*utf8.RuneCountInString(name), 12+7*utf8.RuneCountInString(word)
	name, word = html.EscapeString(name), html.EscapeString(word)
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="20" role="img" aria-label="%[2]s: %[3]s"><title>%[2]s: %[3]s</title>`+
		`<rect width="%[4]d" height="20" rx="3" fill="#333"/><rect x="%[4]d" width="%[5]d" height="20" rx="3" fill="%[6]s"/>`+
		`<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11"><text x="%[7]d" y="14">%[2]s</text><text x="%[8]d" y="14">%[3]s</text></g></svg>`,
		left+right, name, word, left, right, colour, left/2, left+right/2)
}
