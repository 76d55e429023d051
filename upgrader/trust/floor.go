package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/devops-agent/devops-agent/upgrader/swap"
	"github.com/devops-agent/devops-agent/upgrader/version"
)

// maxFloor bounds the floor file in bytes.
const maxFloor = 64 << 10

// Floor remembers on disk the newest version of each file that ran here, so that nobody who can offer old signed files, with
// their old holes, gets them accepted. Processes that change one floor take turns by the lock of the installation.
type Floor struct {
	path string
	mu   sync.Mutex // guards the file between reading and writing it
}

// floorFile is the file: a name, as Target has it, and its oldest acceptable version.
type floorFile struct {
	Floor map[string]string `json:"floor"`
}

// FloorError: the floor file is there and is not what Raise wrote. Nothing is accepted over it: an empty floor would accept
// everything.
type FloorError struct {
	Path string
	Err  error
}

// Error names the file and what is wrong with it.
func (e *FloorError) Error() string {
	return fmt.Sprintf("%s, the oldest versions accepted here, is damaged: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *FloorError) Unwrap() error { return e.Err }

// Hint says what an operator can do.
func (e *FloorError) Hint() string {
	return "restore it from a backup; if you remove it, any signed version is accepted once, however old"
}

// OpenFloor returns the floor kept in the file at path. Where there is none, everything is accepted until the first Raise. A
// file that cannot be read is an error, a *FloorError when it is damaged.
func OpenFloor(path string) (*Floor, error) {
	f := &Floor{path: path}
	if _, err := f.Versions(); err != nil {
		return nil, err
	}
	return f, nil
}

// Versions returns the oldest version accepted of each name, read from the disk.
func (f *Floor) Versions() (map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read()
}

func (f *Floor) read() (versions map[string]string, err error) {
	file, err := os.Open(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the oldest versions accepted here: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	data, err := io.ReadAll(io.LimitReader(file, maxFloor+1))
	if err != nil {
		return nil, fmt.Errorf("read the oldest versions accepted here: %w", err)
	}
	if versions, err = parseFloor(data); err != nil {
		return nil, &FloorError{f.path, err}
	}
	return versions, nil
}

func parseFloor(data []byte) (map[string]string, error) {
	if len(data) > maxFloor {
		return nil, errors.New("it is too long")
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("it is empty")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var file floorFile
	if err := d.Decode(&file); err != nil {
		return nil, errors.New("it is cut off, or was written by something else")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || file.Floor == nil {
		return nil, errors.New("it was written by something else")
	}
	for name, least := range file.Floor {
		if !version.Valid(least) || !version.Plain(name) {
			return nil, errors.New("it holds something that is no version")
		}
	}
	return file.Floor, nil
}

// Allows reports whether a claim is not older than what was accepted before under its name; else the error wraps ErrOlder. A
// zero claim, of a file without signature where none is required, is allowed: nobody vouches for such versions.
func (f *Floor) Allows(claim Claim) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	versions, err := f.read()
	if err != nil {
		return err
	}
	least, known := versions[claim.Name]
	if !known {
		return nil
	}
	if order, ok := version.Compare(claim.Version, least); !ok || order < 0 {
		return fmt.Errorf("%s %s: %w, %s", claim.Name, claim.Version, ErrOlder, least)
	}
	return nil
}

// Raise makes the version of a claim the oldest that is accepted under its name from now on, also after a power cut. A claim
// that is not newer changes nothing. A claim without name or usable version is an error.
func (f *Floor) Raise(claim Claim) error {
	if !version.Valid(claim.Version) || !version.Plain(claim.Name) {
		return fmt.Errorf("raise the oldest version accepted of %q: %q is no version", claim.Name, claim.Version)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	versions, err := f.read()
	if err != nil {
		return err
	}
	if least, known := versions[claim.Name]; known {
		if order, _ := version.Compare(claim.Version, least); order <= 0 {
			return nil
		}
	}
	versions[claim.Name] = claim.Version
	data, err := json.MarshalIndent(floorFile{versions}, "", "  ")
	if err != nil {
		return fmt.Errorf("raise the oldest version accepted of %s: %w", claim.Name, err)
	}
	if err := swap.WriteFile(f.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("raise the oldest version accepted of %s: %w", claim.Name, err)
	}
	return nil
}
