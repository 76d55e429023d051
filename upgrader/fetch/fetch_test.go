package fetch

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func digest(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

// content is bytes that look alike nowhere.
func content(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(data)
	return data
}

// server is one whose answers a test makes up, and what it was asked.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	ranges []string
	eTags  []string
}

func serve(t *testing.T, answer http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.ranges = append(s.ranges, r.Header.Get("Range"))
		s.eTags = append(s.eTags, r.URL.Query().Get("eTag"))
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// open asks the server as the agent does.
func (s *server) open(ctx context.Context, offset int64, eTag string) (*http.Response, error) {
	address := s.URL + "/download?file=x"
	if eTag != "" {
		address += "&eTag=" + eTag
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	return s.Client().Do(req)
}

func (s *server) asked() (ranges, eTags []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ranges, s.eTags
}

// give serves data with ranges, as devopsController does.
func give(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Checksum-Md5", digest(data))
		w.Header().Set("ETag", `"`+digest(data)+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// cut ends the connection after n bytes of the body of what answer says.
func cut(n int, answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer(&cutter{ResponseWriter: w, left: n}, r)
		panic(http.ErrAbortHandler)
	}
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(b []byte) (int, error) {
	n, _ := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		return n, errors.New("cut")
	}
	return n, nil
}

func request(t *testing.T) Request {
	t.Helper()
	return Request{Name: "devopsAgent", Path: filepath.Join(t.TempDir(), "devopsAgent"), Stall: 10 * time.Second}
}

// have fails unless the file at the path holds data, and nothing else is there but what is listed.
func have(t *testing.T, path string, data []byte, more ...string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if data == nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d bytes, %v; there should be no file", len(got), err)
		}
	} else if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v; want %d others", len(got), err, len(data))
	} else {
		more = append(more, "")
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
	if len(names) != len(more) {
		t.Errorf("there is %q, want the file and %q", names, more)
	}
	for _, suffix := range more {
		if _, err := os.Lstat(path + suffix); err != nil {
			t.Error(err)
		}
	}
}

func TestFile(t *testing.T) {
	for _, size := range []int{0, 1, 64 << 10, 1<<20 + 1} {
		data := content(size)
		s := serve(t, give(data))
		r := request(t)
		for range 2 { // the second time over the first
			got, err := File(t.Context(), r, s.open)
			if err != nil || got != (Result{MD5: digest(data), Bytes: int64(size)}) {
				t.Errorf("%+v, %v", got, err)
			}
			have(t, r.Path, data)
		}
		if ranges, eTags := s.asked(); ranges[0] != "" || eTags[0] != "" {
			t.Errorf("%q %q", ranges, eTags)
		}
	}
}

func TestADigestIsComputedWhereNoneIsAnnounced(t *testing.T) {
	data := content(1000)
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) })
	r := request(t)
	if got, err := File(t.Context(), r, s.open); err != nil || got.MD5 != digest(data) {
		t.Errorf("%+v, %v", got, err)
	}
	have(t, r.Path, data)
}

func TestADamagedFileTakesNoPlace(t *testing.T) {
	data, old := content(1000), []byte("old")
	for name, announced := range map[string]string{"another": digest(old), "nonsense": "xyz", "long": strings.Repeat("0", 5000), "upper case": strings.ToUpper(digest(data))} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Checksum-Md5", announced)
			_, _ = w.Write(data)
		})
		r := request(t)
		if err := os.WriteFile(r.Path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := File(t.Context(), r, s.open)
		if name == "upper case" {
			if err != nil {
				t.Error(err)
			}
			have(t, r.Path, data)
			continue
		}
		var wrong *DigestError
		if !errors.As(err, &wrong) || wrong.Name != "devopsAgent" || wrong.Got != digest(data) || wrong.Hint() == "" || len(err.Error()) > 200 {
			t.Errorf("%s: %v", name, err)
		}
		have(t, r.Path, old)
	}
}

func TestNotModified(t *testing.T) {
	old := content(1000)
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })
	r := request(t)
	r.ETag = digest(old)
	if _, err := File(t.Context(), r, s.open); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	have(t, r.Path, nil)
	for _, suffix := range []string{"", partSuffix} {
		if err := os.WriteFile(r.Path+suffix, old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := File(t.Context(), r, s.open)
	if err != nil || got != (Result{MD5: digest(old), Bytes: 1000, NotModified: true}) {
		t.Errorf("%+v, %v", got, err)
	}
	have(t, r.Path, old)
	if _, eTags := s.asked(); eTags[1] != digest(old) {
		t.Errorf("%q", eTags)
	}
	var wrong *DigestError
	r.ETag = digest([]byte("of yesterday"))
	if _, err := File(t.Context(), r, s.open); !errors.As(err, &wrong) || wrong.Want != r.ETag || wrong.Got != digest(old) {
		t.Errorf("a file that was changed meanwhile: %v", err)
	}
	have(t, r.Path, old)
	var status *StatusError
	r.ETag = ""
	if _, err := File(t.Context(), r, s.open); !errors.As(err, &status) || status.Code != 304 {
		t.Errorf("304 without being asked: %v", err)
	}
}

func TestStatusErrors(t *testing.T) {
	for _, c := range []struct {
		code  int
		after string
		want  time.Duration
	}{
		{404, "", 0}, {500, "", 0}, {503, "120", 2 * time.Minute}, {429, "x", 0}, {503, "-5", 0}, {503, "99999999999999999999", 24 * time.Hour},
		{503, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), time.Hour}, {503, time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 0},
		{204, "", 0}, {302, "", 0}, {403, "", 0},
	} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			if c.after != "" {
				w.Header().Set("Retry-After", c.after)
			}
			w.WriteHeader(c.code)
			_, _ = io.WriteString(w, "no\x1b[2J")
		})
		r := request(t)
		_, err := File(t.Context(), r, s.open)
		var status *StatusError
		if !errors.As(err, &status) {
			if c.code != 302 { // net/http says it first: no address to go to
				t.Errorf("%d: %v", c.code, err)
			}
			continue
		}
		if status.Code != c.code || (status.RetryAfter-c.want).Abs() > 2*time.Second || (status.Hint() != "") != (c.code == 404) || !strings.Contains(err.Error(), strconv.Itoa(c.code)) {
			t.Errorf("%d %q: %+v", c.code, c.after, status)
		}
		have(t, r.Path, nil)
	}
}

func TestADownloadThatWasCutGoesOn(t *testing.T) {
	data := content(300_000)
	for name, mark := range map[string]func(http.Header){
		"MD5":  func(h http.Header) { h.Set("X-Checksum-Md5", digest(data)) },
		"ETag": func(h http.Header) { h.Set("ETag", `"v1"`) },
		"both": func(h http.Header) { h.Set("X-Checksum-Md5", digest(data)); h.Set("ETag", `"v1"`) },
		"none": func(http.Header) {},
		"weak": func(h http.Header) { h.Set("ETag", `W/"v1"`) },
	} {
		answer := func(w http.ResponseWriter, r *http.Request) {
			mark(w.Header())
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}
		calls := 0
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls == 1 {
				cut(100_000, answer)(w, r)
			}
			answer(w, r)
		})
		r := request(t)
		_, err := File(t.Context(), r, s.open)
		var truncated *TruncatedError
		if !errors.As(err, &truncated) || truncated.Got != 100_000 || truncated.Size != 300_000 {
			t.Errorf("%s: %v", name, err)
		}
		have(t, r.Path, nil, partSuffix, noteSuffix)
		resumed := int64(100_000)
		if name == "none" || name == "weak" {
			resumed = 0
		}
		got, err := File(t.Context(), r, s.open)
		if err != nil || got != (Result{MD5: digest(data), Bytes: 300_000, Resumed: resumed}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		have(t, r.Path, data)
		if ranges, _ := s.asked(); len(ranges) != 2 || (ranges[1] == "bytes=100000-") != (resumed > 0) {
			t.Errorf("%s: %q", name, ranges)
		}
	}
}

// However often the connection breaks, the file comes, and hardly a byte twice.
func TestManyCuts(t *testing.T) {
	data := content(2 << 20)
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n := 1 + random.IntN(300_000)
		mu.Unlock()
		cut(n, give(data))(w, r)
	})
	r := request(t)
	for n := 1; ; n++ {
		got, err := File(t.Context(), r, s.open)
		if err == nil {
			if got.MD5 != digest(data) || n < 5 || got.Resumed == 0 {
				t.Errorf("%+v after %d attempts", got, n)
			}
			break
		}
		var truncated *TruncatedError
		if !errors.As(err, &truncated) || n > 500 {
			t.Fatal(err)
		}
	}
	have(t, r.Path, data)
	ranges, _ := s.asked()
	last := int64(-1)
	for _, text := range ranges {
		from, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(text, "bytes="), "-"), 10, 64)
		if from <= last {
			t.Errorf("%q does not go on", ranges)
			break
		}
		last = from
	}
}

// BK-CI's own server knows no ranges, and files are replaced while they are fetched: then it begins again.
func TestServersThatDoNotGoOn(t *testing.T) {
	data, other := content(300_000), content(300_001)
	for name, c := range map[string]struct {
		then     http.HandlerFunc
		want     []byte
		requests int
	}{
		"no ranges": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Checksum-Md5", digest(data))
			_, _ = w.Write(data)
		}, data, 2},
		"another file, no ranges": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Checksum-Md5", digest(other))
			_, _ = w.Write(other)
		}, other, 2},
		"another file":   {give(other), other, 3},
		"a shorter file": {give(data[:50_000]), data[:50_000], 3},
		"the same, shorter by all that is missing": {give(data[:100_000]), data[:100_000], 3},
		"another range": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=99999-")
			}
			give(data)(w, r)
		}, data, 3},
		"half of the rest": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=100000-200000")
			}
			give(data)(w, r)
		}, data, 3},
		"two ranges": {func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				r.Header.Set("Range", "bytes=100000-200000,0-5")
			}
			give(data)(w, r)
		}, data, 3},
		"marks gone": {func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}, data, 3},
	} {
		calls := 0
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls == 1 {
				cut(100_000, give(data))(w, r)
			}
			c.then(w, r)
		})
		r := request(t)
		if _, err := File(t.Context(), r, s.open); err == nil {
			t.Fatal("it was not cut")
		}
		got, err := File(t.Context(), r, s.open)
		if err != nil || got != (Result{MD5: digest(c.want), Bytes: int64(len(c.want))}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		have(t, r.Path, c.want)
		if ranges, _ := s.asked(); len(ranges) != c.requests {
			t.Errorf("%s: %q", name, ranges)
		}
	}
}

func TestPartsThatAreNoUse(t *testing.T) {
	data := content(300_000)
	for name, c := range map[string]struct {
		damage func(path string) error
		server http.HandlerFunc
		wrong  bool // the first attempt ends with a DigestError
	}{
		"a hole":      {func(p string) error { return overwrite(p+partSuffix, 5000, make([]byte, 4096)) }, give(data), false},
		"cut shorter": {func(p string) error { return os.Truncate(p+partSuffix, 5000) }, give(data), false},
		"longer":      {func(p string) error { return os.Truncate(p+partSuffix, 500_000) }, give(data), false},
		"empty":       {func(p string) error { return os.Truncate(p+partSuffix, 0) }, give(data), false},
		"no part":     {func(p string) error { return os.Remove(p + partSuffix) }, give(data), false},
		"no note":     {func(p string) error { return os.Remove(p + noteSuffix) }, give(data), false},
		"a torn note": {func(p string) error { return os.Truncate(p+noteSuffix, 20) }, give(data), false},
		"a wild note": {func(p string) error {
			return os.WriteFile(p+noteSuffix, []byte(`{"md5":"x","bytes":-5,"sum":"x"}`), 0o600)
		}, give(data), false},
		"a link": {func(p string) error {
			return errors.Join(os.Rename(p+partSuffix, filepath.Join(filepath.Dir(filepath.Dir(p)), "elsewhere")), link("elsewhere", p+partSuffix))
		}, give(data), false},
		// What kill -9 leaves: nothing was noted at the end. With a digest it is worth going on, which finds damage in the end.
		"killed": {func(p string) error { return writeNote(p, note{identity: identity{MD5: digest(data)}}) }, give(data), false},
		"killed, and a hole": {func(p string) error {
			return errors.Join(writeNote(p, note{identity: identity{MD5: digest(data)}}), overwrite(p+partSuffix, 5000, make([]byte, 4096)))
		}, give(data), true},
		"killed, no digest, and a hole": {func(p string) error {
			return errors.Join(writeNote(p, note{identity: identity{ETag: `"` + digest(data) + `"`}}), overwrite(p+partSuffix, 5000, make([]byte, 4096)))
		}, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"`+digest(data)+`"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		}, false},
	} {
		calls := 0
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls == 1 {
				cut(100_000, give(data))(w, r)
			}
			c.server(w, r)
		})
		r := request(t)
		if _, err := File(t.Context(), r, s.open); err == nil {
			t.Fatal("it was not cut")
		}
		if err := c.damage(r.Path); err != nil {
			if name == "a link" {
				continue // a machine that lets us make none
			}
			t.Fatal(err)
		}
		_, err := File(t.Context(), r, s.open)
		if c.wrong {
			var wrong *DigestError
			if !errors.As(err, &wrong) {
				t.Errorf("%s: %v", name, err)
			}
			have(t, r.Path, nil)
			_, err = File(t.Context(), r, s.open)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		have(t, r.Path, data)
	}
}

func overwrite(path string, at int64, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, at)
	return errors.Join(err, f.Close())
}

func link(target, path string) error { return os.Symlink(filepath.Join("..", target), path) }

// hold sends n bytes and then nothing more until the client goes.
func hold(n int, data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Checksum-Md5", digest(data))
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		if n >= 0 {
			_, _ = w.Write(data[:n])
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	}
}

func TestASilentServerIsLeft(t *testing.T) {
	data := content(100_000)
	for _, n := range []int{-1, 0, 1, 50_000} {
		s := serve(t, hold(n, data))
		r := request(t)
		r.Stall = time.Second // a busy machine needs some of it for the bytes that do come
		begin := time.Now()
		_, err := File(t.Context(), r, s.open)
		var stalled *StalledError
		if !errors.As(err, &stalled) || stalled.Limit != r.Stall || stalled.Bytes != int64(max(n, 0)) || !stalled.Timeout() {
			t.Errorf("after %d bytes: %v", n, err)
		}
		if took := time.Since(begin); took < r.Stall || took > 5*time.Second {
			t.Errorf("after %d bytes: it took %v", n, took)
		}
		if n < 0 {
			have(t, r.Path, nil)
		} else {
			have(t, r.Path, nil, partSuffix, noteSuffix)
		}
		again := serve(t, give(data))
		r.Stall = 10 * time.Second
		if got, err := File(t.Context(), r, again.open); err != nil || got.Resumed != int64(max(n, 0)) {
			t.Errorf("after %d bytes, then: %+v, %v", n, got, err)
		}
		have(t, r.Path, data)
	}
}

// Inside a bubble the server is a pipe, and the defaults take no time.
func TestAServerThatDripsIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			every time.Duration
			bytes int64
			after time.Duration
			want  error
		}{
			{29 * time.Second, 62, DefaultLimit, new(LimitError)},
			{31 * time.Second, 0, DefaultStall, new(StalledError)},
		} {
			in, out := io.Pipe()
			var dripping sync.WaitGroup
			dripping.Go(func() {
				tick := time.NewTicker(c.every)
				defer tick.Stop()
				for range tick.C {
					if _, err := out.Write([]byte("x")); err != nil {
						return
					}
				}
			})
			begin := time.Now()
			_, err := File(t.Context(), Request{Name: "f", Path: path}, func(context.Context, int64, string) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: http.Header{"X-Checksum-Md5": {"x"}}, Body: in, ContentLength: 1000}, nil
			})
			var limit *LimitError
			var stalled *StalledError
			switch c.want.(type) {
			case *LimitError:
				if !errors.As(err, &limit) || limit.Bytes != c.bytes || limit.Limit != c.after || !limit.Timeout() {
					t.Errorf("%v", err)
				}
			case *StalledError:
				if !errors.As(err, &stalled) || stalled.Limit != c.after {
					t.Errorf("%v", err)
				}
			}
			if took := time.Since(begin); took != c.after {
				t.Errorf("it took %v, want %v", took, c.after)
			}
			dripping.Wait()
			if err := removePart(path); err != nil {
				t.Error(err)
			}
		}
	})
}

// stubborn is a body that does not mind being closed.
type stubborn struct{}

func (stubborn) Read(b []byte) (int, error) {
	<-time.After(time.Second)
	return copy(b, "x"), nil
}
func (stubborn) Close() error { return nil }

func TestTimeIsUpAlsoForThoseWhoDoNotListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := File(t.Context(), Request{Name: "f", Path: path}, func(context.Context, int64, string) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: stubborn{}, ContentLength: -1}, nil
		})
		var limit *LimitError
		if took := time.Since(begin); !errors.As(err, &limit) || took > DefaultLimit+time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestRestFrom(t *testing.T) {
	for header, want := range map[string]int64{
		"bytes 10-99/100": 90, " bytes 10-10/11 ": 1, "bytes 10-99/*": 90,
		"bytes 10-99/101": -1, "bytes 10-99/99": -1, "bytes 9-99/100": -1, "bytes 11-99/100": -1, "bytes 10-9/10": -1, "bytes 10-99": -1, "bytes 10/100": -1,
		"bytes */100": -1, "10-99/100": -1, "bytes 10-99/": -1, "bytes 10--99/100": -1, "bytes +10-99/100": -1, "": -1,
		"bytes 10-9223372036854775807/9223372036854775808": -1,
	} {
		size, ok := restFrom(10, header, true)
		if ok != (want >= 0) || ok && size != want {
			t.Errorf("%q: %d, %v", header, size, ok)
		}
	}
	if _, ok := restFrom(10, "bytes 10-99/*", false); ok {
		t.Error("without a digest nobody can tell where the file ends")
	}
}

func TestWhoeverCancelsIsTold(t *testing.T) {
	data := content(100_000)
	s := serve(t, hold(50_000, data))
	r := request(t)
	mine := errors.New("the agent stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			if info, err := os.Stat(r.Path + partSuffix); err == nil && info.Size() == 50_000 {
				cancel(mine)
				return
			}
		}
	}()
	if _, err := File(ctx, r, s.open); !errors.Is(err, mine) || !strings.HasPrefix(err.Error(), "fetch devopsAgent: ") {
		t.Errorf("%v", err)
	}
	have(t, r.Path, nil, partSuffix, noteSuffix)
	if _, err := File(ctx, r, s.open); !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
}

// endless is a body that does not end.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }
func (endless) Close() error               { return nil }

func TestBodiesThatAreNotAsLongAsTheySay(t *testing.T) {
	old := []byte("old")
	for name, c := range map[string]struct {
		body   io.ReadCloser
		length int64
		most   int64
		size   int64 // in the error
		cut    bool
		writes bool
	}{
		"endless":                           {endless{}, -1, 1 << 20, 0, false, true},
		"announced too long":                {io.NopCloser(strings.NewReader("")), 1<<20 + 1, 1 << 20, 1<<20 + 1, false, false},
		"longer than said":                  {endless{}, 1000, 1 << 20, 0, false, true},
		"one byte too long":                 {io.NopCloser(bytes.NewReader(content(101))), -1, 100, 0, false, true},
		"shorter than said":                 {io.NopCloser(strings.NewReader("short")), 1000, 1 << 20, 0, true, true},
		"nothing, where something was said": {io.NopCloser(strings.NewReader("")), 1000, 1 << 20, 0, true, true},
	} {
		r := request(t)
		r.MaxBytes = c.most
		if err := os.WriteFile(r.Path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := File(t.Context(), r, func(context.Context, int64, string) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Body: c.body, ContentLength: c.length}, nil
		})
		var long *TooLongError
		var short *TruncatedError
		if c.cut && (!errors.As(err, &short) || short.Size != c.length) || !c.cut && (!errors.As(err, &long) || long.Size != c.size) {
			t.Errorf("%s: %v", name, err)
		}
		if c.cut {
			have(t, r.Path, old, partSuffix, noteSuffix)
		} else {
			have(t, r.Path, old)
		}
	}
}

func TestEncodedBodiesAreRefused(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "\x1f\x8b")
	})
	r := request(t)
	if _, err := File(t.Context(), r, s.open); err == nil || !strings.Contains(err.Error(), `"gzip"`) {
		t.Errorf("%v", err)
	}
	have(t, r.Path, nil)
	s = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "identity")
		_, _ = io.WriteString(w, "plain")
	})
	if _, err := File(t.Context(), r, s.open); err != nil {
		t.Error(err)
	}
}

func TestRoomIsLookedForFirst(t *testing.T) {
	data := content(100_000)
	calls := 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls == 1 {
			cut(60_000, give(data))(w, r)
		}
		if r.URL.Query().Get("eTag") != "" { // no length
			w.(http.Flusher).Flush()
			_, _ = w.Write(data)
			return
		}
		give(data)(w, r)
	})
	r := request(t)
	free, asked := uint64(0), ""
	r.Free = func(dir string) (uint64, error) { asked = dir; return free, nil }
	r.Room = 900_000
	room := func(need uint64) {
		t.Helper()
		for _, free = range []uint64{0, need - 1} {
			_, err := File(t.Context(), r, s.open)
			var little *RoomError
			if !errors.As(err, &little) || little.Need != need || little.Free != free || little.Path != filepath.Dir(r.Path) || asked != little.Path || little.Hint() == "" {
				t.Errorf("%v, want %d", err, need)
			}
		}
		free = need
	}
	calls = 1
	room(1_100_000)
	have(t, r.Path, nil)
	calls = 0
	var truncated *TruncatedError
	if _, err := File(t.Context(), r, s.open); !errors.As(err, &truncated) {
		t.Fatal(err)
	}
	room(1_034_000) // only the rest is to come
	have(t, r.Path, nil, partSuffix, noteSuffix)
	if got, err := File(t.Context(), r, s.open); err != nil || got.Resumed != 60_000 {
		t.Errorf("%+v, %v", got, err)
	}
	r.ETag, r.MaxBytes = "x", 200_000
	room(1_210_000) // as much as it may have
	have(t, r.Path, data)
	r.Free = func(string) (uint64, error) { return 0, fs.ErrPermission }
	if _, err := File(t.Context(), r, s.open); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v", err)
	}
	have(t, r.Path, data)
}

func TestErrorsOfTheWorld(t *testing.T) {
	data := content(1000)
	s := serve(t, give(data))
	r := request(t)
	r.Path = filepath.Join(filepath.Dir(r.Path), "missing", "f")
	if _, err := File(t.Context(), r, s.open); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	r = request(t)
	if err := os.Mkdir(r.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := File(t.Context(), r, s.open); err == nil || !strings.Contains(err.Error(), r.Path) {
		t.Errorf("a directory in its place: %v", err)
	}
	if _, err := os.Lstat(r.Path + partSuffix); err == nil {
		t.Error("the part is still there")
	}
	refused := errors.New("connection refused")
	if _, err := File(t.Context(), request(t), func(context.Context, int64, string) (*http.Response, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
}

func TestSweep(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		at    time.Time
		stays bool
	}{
		"a.part": {now.Add(-25 * time.Hour), false}, "a.part.json": {now.Add(-25 * time.Hour), false},
		"b.part": {now.Add(-23 * time.Hour), true}, "b.part.json": {now, true},
		"c.part":  {now.Add(365 * 24 * time.Hour), false}, // the clock was set back
		"jdk.zip": {now.Add(-1000 * time.Hour), true}, "d.parts": {now.Add(-1000 * time.Hour), true},
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, c.at, c.at), Sweep(dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); (err == nil) != c.stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "e.part"), 0o700), os.Chtimes(filepath.Join(dir, "e.part"), now.Add(-48*time.Hour), now.Add(-48*time.Hour)), Sweep(dir)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "e.part")); err != nil {
		t.Errorf("a directory: %v", err)
	}
	if err := Sweep(filepath.Join(dir, "missing")); err != nil {
		t.Error(err)
	}
}

// FuzzAnswer: whatever a server answers, and whatever lies there from before, the file is the old one or one that was announced.
func FuzzAnswer(f *testing.F) {
	data := content(1000)
	f.Add(200, "", digest(data), "", int64(1000), data, []byte(nil), []byte(nil))
	f.Add(206, "bytes 400-999/1000", digest(data), `"x"`, int64(600), data[400:], data[:400], []byte(`{"md5":"`+digest(data)+`"}`))
	f.Add(206, "bytes 400-999/*", "", `"x"`, int64(-1), data[400:], data[:400], []byte(`{"etag":"\"x\"","bytes":400,"sum":"`+digest(data[:400])+`"}`))
	f.Add(304, "", "", "", int64(0), []byte{}, []byte("x"), []byte("{"))
	f.Fuzz(func(t *testing.T, status int, span, sum, tag string, length int64, body, before, noted []byte) {
		dir := t.TempDir()
		r := Request{Name: "f", Path: filepath.Join(dir, "f"), ETag: digest([]byte("old")), MaxBytes: 1 << 20}
		for path, data := range map[string][]byte{r.Path: []byte("old"), r.Path + partSuffix: before, r.Path + noteSuffix: noted} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		requests := 0
		got, err := File(t.Context(), r, func(_ context.Context, offset int64, _ string) (*http.Response, error) {
			if requests++; requests > 2 || offset < 0 || requests == 2 && offset != 0 {
				t.Errorf("request %d from %d", requests, offset)
			}
			return &http.Response{StatusCode: status, ContentLength: length, Body: io.NopCloser(bytes.NewReader(body)),
				Header: http.Header{"Content-Range": {span}, "X-Checksum-Md5": {sum}, "Etag": {tag}}}, nil
		})
		now, rerr := os.ReadFile(r.Path)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if err != nil {
			if string(now) != "old" {
				t.Errorf("%v, and yet there is %q", err, now)
			}
			return
		}
		if digest(now) != got.MD5 || int64(len(now)) != got.Bytes || got.Resumed > got.Bytes || got.NotModified != (status == 304) {
			t.Errorf("%+v, and there is %q", got, now)
		}
		if announced := strings.ToLower(strings.TrimSpace(sum)); !got.NotModified && announced != "" && announced != got.MD5 {
			t.Errorf("%q was announced: %+v", sum, got)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	})
}
