package controller

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of secrets.
const (
	maxSecret     = 64 << 10 // bytes of a value
	maxSecrets    = 10_000   // of all projects
	maxSecretUses = 100      // in one build
)

// Secret is a secret as lists show it. Its value leaves the controller only towards the workers of builds that name it.
type Secret struct {
	Project   string   `json:"project"`
	Name      string   `json:"name"`
	CreatedAt int64    `json:"createdAt"`        // milliseconds since 1970
	ChangedAt int64    `json:"changedAt"`        // of the value
	UsedBy    []string `json:"usedBy,omitempty"` // definitions of its project that name it; in lists only
}

type secretKey struct{ project, name string }

type secret struct {
	Secret
	sealed string
}

var secretName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

func (k secretKey) place() string { return "secret/" + k.project + "/" + k.name }

func checkSecret(project, name string) (secretKey, error) {
	if project == "" {
		project = DefaultProject
	}
	if !label.MatchString(project) {
		return secretKey{}, &InputError{Err: fmt.Errorf("project %q: letters, digits, _ and - only", clip(project, 64))}
	}
	if !secretName.MatchString(name) {
		return secretKey{}, &InputError{Err: fmt.Errorf("secret %q: letters, digits and _ only", clip(name, 64))}
	}
	return secretKey{project, name}, nil
}

func (s *Server) loadSecrets() error {
	s.secrets = make(map[secretKey]*secret)
	return s.store.each(func(scan func(...any) error) error {
		c := new(secret)
		var doc string
		if err := scan(&doc, &c.sealed); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(doc), &c.Secret); err != nil {
			return err
		}
		s.secrets[secretKey{c.Project, c.Name}] = c
		return nil
	}, `SELECT doc, sealed FROM secret`)
}

// SetSecret stores the value of a secret of a project ("" is DefaultProject), encrypted. Builds that are submitted
// from now on get it; those that were before keep what they have.
func (s *Server) SetSecret(project, name, value string) (Secret, error) {
	key, err := checkSecret(project, name)
	if err != nil {
		return Secret{}, err
	}
	if value == "" || len(value) > maxSecret || strings.ContainsRune(value, 0) || !utf8.ValidString(value) {
		return Secret{}, &InputError{Err: fmt.Errorf("secret %s: a text of 1 to %d bytes, please", name, maxSecret)}
	}
	sealed, err := s.vault.seal(key.place(), []byte(value))
	if err != nil {
		return Secret{}, err
	}
	now := millis(time.Now())
	s.mu.Lock()
	c := &secret{Secret: Secret{Project: key.project, Name: name, CreatedAt: now, ChangedAt: now}, sealed: sealed}
	old := s.secrets[key]
	switch {
	case old != nil:
		c.CreatedAt = old.CreatedAt
	case len(s.secrets) >= maxSecrets:
		s.mu.Unlock()
		return Secret{}, &InputError{Err: fmt.Errorf("there are %d secrets already", maxSecrets)}
	}
	s.secrets[key] = c
	doc := jsonText(c.Secret)
	t := s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO secret (project, name, doc, sealed) VALUES (?, ?, ?, ?)
			ON CONFLICT (project, name) DO UPDATE SET doc = excluded.doc, sealed = excluded.sealed`, key.project, key.name, doc, sealed)
		return err
	}, s.undoSecret(key, c, old))
	s.mu.Unlock()
	return c.Secret, t.wait()
}

// undoSecret takes a change back that the disk refused, unless there was another one since.
func (s *Server) undoSecret(key secretKey, now, before *secret) func(error) {
	return func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case err == nil || s.secrets[key] != now:
		case before == nil:
			delete(s.secrets, key)
		default:
			s.secrets[key] = before
		}
	}
}

// RemoveSecret forgets a secret, ErrNotFound when there is none. Builds that have it already keep it.
func (s *Server) RemoveSecret(project, name string) error {
	key, err := checkSecret(project, name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	old := s.secrets[key]
	if old == nil {
		s.mu.Unlock()
		return fmt.Errorf("secret %s of project %s: %w", key.name, key.project, ErrNotFound)
	}
	delete(s.secrets, key)
	t := s.store.enqueue(func(tx *sql.Tx) error {
		_, err := tx.Exec(`DELETE FROM secret WHERE project = ? AND name = ?`, key.project, key.name)
		return err
	}, s.undoSecret(key, nil, old))
	s.mu.Unlock()
	return t.wait()
}

// Secrets lists the secrets of a project, of all when it is "", without their values.
func (s *Server) Secrets(project string) []Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	used := s.secretUsers()
	list := make([]Secret, 0, len(s.secrets))
	for _, c := range s.secrets {
		if project == "" || c.Project == project {
			one := c.Secret
			one.UsedBy = used[secretKey{c.Project, c.Name}]
			list = append(list, one)
		}
	}
	slices.SortFunc(list, func(a, b Secret) int { return cmp.Or(cmp.Compare(a.Project, b.Project), cmp.Compare(a.Name, b.Name)) })
	return list
}

// secretUsers are the definitions that name each secret, sorted. Call it with the lock held.
func (s *Server) secretUsers() map[secretKey][]string {
	users := make(map[secretKey][]string)
	for at, d := range s.definitions {
		for _, name := range d.uses {
			key := secretKey{at.project, name}
			users[key] = append(users[key], at.name)
		}
	}
	for _, names := range users {
		slices.Sort(names)
	}
	return users
}

// secretValues opens the secrets that a build names.
func (s *Server) secretValues(project string, names []string) (map[string]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	values := make(map[string]string, len(names))
	for _, name := range names {
		key, err := checkSecret(project, name)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		c := s.secrets[key]
		s.mu.Unlock()
		if c == nil {
			return nil, &InputError{Err: fmt.Errorf("secrets: project %s has no secret %s: set it with devopsController secret set %s", key.project, name, name)}
		}
		value, err := s.vault.open(key.place(), c.sealed)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		values[name] = string(value)
	}
	return values, nil
}

// checkSecrets looks at the names of secrets in a build file.
func (s *Spec) checkSecrets() error {
	if len(s.Secrets) > maxSecretUses {
		return fmt.Errorf("secrets: more than %d", maxSecretUses)
	}
	for i, name := range s.Secrets {
		if !secretName.MatchString(name) {
			return fmt.Errorf("secrets: %q: letters, digits and _ only", clip(name, 64))
		}
		if _, twice := s.Variables[name]; twice || slices.Contains(s.Secrets[:i], name) {
			return fmt.Errorf("secrets: %s is there twice, or is a variable as well", name)
		}
	}
	return nil
}

// hiddenValues are the sensitive values of a build that are stored encrypted beside its spec.
type hiddenValues struct {
	Variables map[string]string `json:"variables,omitempty"`
	Secrets   map[string]string `json:"secrets,omitempty"`
}

// storedSpec is a spec as it is stored: sensitive variables are empty in it, their values are sealed.
type storedSpec struct {
	Spec
	Sealed string `json:"sealed,omitempty"`
}

// sealSpec is the stored form of a build's spec.
func (s *Server) sealSpec(b *build) (string, error) {
	hidden := hiddenValues{Variables: make(map[string]string), Secrets: b.secrets}
	stored := storedSpec{Spec: b.spec}
	stored.Variables = maps.Clone(b.spec.Variables)
	for name, v := range stored.Variables {
		if v.Sensitive && v.Value != "" {
			hidden.Variables[name] = v.Value
			stored.Variables[name] = Variable{Sensitive: true}
		}
	}
	if len(hidden.Variables)+len(hidden.Secrets) > 0 {
		var err error
		if stored.Sealed, err = s.vault.sealJSON("spec/"+b.ID, hidden); err != nil {
			return "", err
		}
	}
	return jsonText(stored), nil
}

// openSpec reads what sealSpec made. A build whose values cannot be decrypted says so and is not given to agents.
func (s *Server) openSpec(b *build, text string) error {
	var stored storedSpec
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		return err
	}
	b.text, b.spec = text, stored.Spec
	if stored.Sealed != "" {
		var hidden hiddenValues
		if err := s.vault.openJSON("spec/"+b.ID, stored.Sealed, &hidden); err != nil {
			b.locked = err
			return nil
		}
		b.secrets = hidden.Secrets
		for name, value := range hidden.Variables {
			b.spec.Variables[name] = Variable{Value: value, Sensitive: true}
		}
	}
	return nil
}

// hiddenResults are sensitive values that steps reported, stored encrypted beside a build's record.
type hiddenResults struct {
	Vars  map[string]string `json:"vars,omitempty"`
	Given map[string]string `json:"given,omitempty"`
}

// doc is the record of a build as it is stored.
func (s *Server) doc(b *build) ([]byte, error) {
	if len(b.Hidden)+len(b.GivenHidden) == 0 || b.locked != nil {
		return json.Marshal(b)
	}
	part := func(from map[string]string, names []string) (plain, hidden map[string]string) {
		plain, hidden = maps.Clone(from), make(map[string]string)
		for _, name := range names {
			if value, there := plain[name]; there {
				hidden[name] = value
				delete(plain, name)
			}
		}
		return plain, hidden
	}
	stored := *b
	var hidden hiddenResults
	stored.Vars, hidden.Vars = part(b.Vars, b.Hidden)
	stored.Given, hidden.Given = part(b.Given, b.GivenHidden)
	var err error
	if stored.SealedVars, err = s.vault.sealJSON("vars/"+b.ID, hidden); err != nil {
		s.log.Error("Sensitive values that a step reported are not stored", "build", b.ID, "err", err)
	}
	return json.Marshal(&stored)
}

// openDoc reads what doc made.
func (s *Server) openDoc(b *build, text string) error {
	if err := json.Unmarshal([]byte(text), b); err != nil || b.SealedVars == "" {
		return err
	}
	var hidden hiddenResults
	if err := s.vault.openJSON("vars/"+b.ID, b.SealedVars, &hidden); err != nil {
		b.locked = err
		return nil
	}
	b.SealedVars = ""
	for _, part := range []struct {
		to   *map[string]string
		from map[string]string
	}{{&b.Vars, hidden.Vars}, {&b.Given, hidden.Given}} {
		if *part.to == nil {
			*part.to = make(map[string]string)
		}
		maps.Copy(*part.to, part.from)
	}
	return nil
}

// sensitive are the values that must not be seen, of three bytes and more: shorter ones are nearly everywhere.
func (b *build) sensitive() []string {
	var list []string
	add := func(value string) {
		for line := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == '\n' || r == '\r' }) {
			for _, form := range []string{strings.TrimSpace(line), strings.TrimSpace(strings.ReplaceAll(line, "'", ""))} {
				if len(form) >= 3 && !slices.Contains(list, form) {
					list = append(list, form)
				}
			}
		}
	}
	for _, v := range b.spec.Variables {
		if v.Sensitive {
			add(v.Value)
		}
	}
	for _, value := range b.secrets {
		add(value)
	}
	for _, name := range b.GivenHidden {
		add(b.Given[name])
	}
	slices.SortFunc(list, func(x, y string) int { return cmp.Or(cmp.Compare(len(y), len(x)), strings.Compare(x, y)) })
	return list
}

// mask hides the sensitive values of a build in a text that a worker or an agent sent. Our worker has done so already;
// others may not.
func (b *build) mask(text string) string {
	for _, value := range b.covered {
		text = strings.ReplaceAll(text, value, masked)
	}
	return text
}

// maskLines is mask for lines of the log.
func maskLines(lines []Line, values []string) {
	for i := range lines {
		for _, value := range values {
			lines[i].Message = strings.ReplaceAll(lines[i].Message, value, masked)
		}
	}
}

// secretRoutes adds the calls about secrets.
func (s *Server) secretRoutes(route func(pattern string, h http.HandlerFunc)) {
	route("GET /secrets", func(w http.ResponseWriter, r *http.Request) {
		reply(w, s.Secrets(r.URL.Query().Get("project")), nil)
	})
	type newValue struct {
		Project string `json:"project"`
		Value   string `json:"value"`
	}
	route("PUT /secrets/{name}", act(func(r *http.Request, in newValue) (Secret, error) {
		return s.SetSecret(in.Project, r.PathValue("name"), in.Value)
	}))
	route("DELETE /secrets/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, s.RemoveSecret(r.URL.Query().Get("project"), r.PathValue("name")))
	})
}
