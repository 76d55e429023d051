//go:build linux

package e2e

import (
	"os"
	"time"

	"github.com/devops-agent/devops-agent/cmd/internal/lab"
)

func cleanupScenarios() []scenario {
	return []scenario{
		both("old files at start", oldFilesAtStart(""), 69),
		both("old files at start, keep 2 hours", oldFilesAtStart("2"), 69),
		both("files of a running job", filesOfRunningJob, 71),
	}
}

func oldFilesAtStart(keep string) func(*S) {
	return func(s *S) {
		o := lab.HomeOptions{}
		limit := 96 * time.Hour
		if keep != "" {
			o.Set = map[string]string{"devops.agent.logs.keep.hours": keep}
			limit = 2 * time.Hour
		}
		w := s.world(o)
		old, young := limit+2*time.Hour, limit-time.Hour
		gone := []string{w.home.Aged("hs_err_pid100.log", old), w.home.Aged("hs_err_pid101", old), w.home.Aged("logs/b-1_1_agent.log", old),
			w.home.Aged("logs/devopsDaemon.log", old)}
		kept := []string{w.home.Aged("hs_err_pid102.log", young), w.home.Aged("logs/b-2_1_agent.log", young), w.home.Aged("logs/notes.txt", old),
			w.home.Aged("hs_err_pid_dir/file", old), w.home.Aged("logs/dir.log/file.log", old), w.home.Aged("other.log", old),
			w.home.Aged("workspace/hs_err_pid103", old)}
		w.home.Age("hs_err_pid_dir", old)
		w.home.Age("logs/dir.log", old)
		// A link must not lead the clean-up astray.
		outside := w.home.LabPath("outside.log")
		err := os.WriteFile(outside, []byte("mine\n"), 0o600)
		if err == nil {
			past := time.Now().Add(-old)
			err = os.Chtimes(outside, past, past)
		}
		if err == nil {
			err = os.Symlink(outside, w.home.Path("logs", "link.log"))
		}
		if err != nil {
			s.Fatalf("prepare a link: %v", err)
		}
		w.start()
		exists := func(path string) bool { _, err := os.Lstat(path); return err == nil }
		for _, path := range gone {
			s.check(69, lab.Eventually(time.Until(w.agent.Began().Add(12*time.Second)), func() bool { return !exists(path) }), "%s is still there", path)
		}
		w.beats(1)
		for _, path := range kept {
			s.check(69, exists(path), "%s was deleted", path)
		}
		s.check(69, exists(outside), "the target of a link in logs was deleted")
		w.alive(69)
	}
}

// filesOfRunningJob makes the files of a running job look old while another job ends.
func filesOfRunningJob(s *S) {
	w := s.world(lab.HomeOptions{})
	long, short := lab.NewBuild(), lab.NewBuild()
	open := w.home.Gate(long)
	w.rec.Queue(long, short)
	w.home.Work(&short, `sleep 6`) // ends after the files below were aged
	w.start()
	w.mustBegin(pollLimit, long)
	w.mustBegin(pollLimit, short)
	files := []string{"devops_agent_start_lab_" + long.ID + "_1.sh", "devops_agent_prepare_start_lab_" + long.ID + "_1.sh", "build_tmp/" + long.Key() + "_build_msg.log"}
	for _, name := range files {
		if s.check(71, w.home.Has(name), "%s is not there while the worker runs", name) {
			w.home.Age(name, 9*24*time.Hour)
		}
	}
	old := w.home.Aged("build_tmp/stale", 9*24*time.Hour)
	w.mustFinish(60*time.Second, short)
	s.check(71, lab.Eventually(5*time.Second, func() bool { _, err := os.Lstat(old); return err != nil }), "the clean-up after a job did not take place")
	for _, name := range files {
		s.check(71, w.home.Has(name), "%s of a running job was deleted", name)
	}
	open()
	q := w.mustFinish(60*time.Second, long)
	s.check(71, q.Get("success") == true, "the job failed: %v", q)
}
