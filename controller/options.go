package controller

import (
	"log/slog"
	"time"
)

// Options shape a Server. The zero value is a controller in memory with the durations of protocol Appendix D.
type Options struct {
	Dir        string       // data directory; "" keeps everything in memory
	Log        *slog.Logger // nil is silent
	PublicURL  string       // how machines reach this controller; "" is what each of them called
	Version    string       // of the program, for GET /api/v1/version
	SecretsKey string       // file with the key of encrypted values; "" is SecretsKeyFile in Dir
	// OwnCertificate says that the controller serves HTTPS with the certificate of OwnCertFile in Dir: new agents get it.
	OwnCertificate bool
	Repo           string // directory of a package repository to serve below /repo/; "" serves none

	OfflineAfter  time.Duration // an agent without a sign of life is IMPORT_EXCEPTION; 50 s
	StartWithin   time.Duration // a build handed out whose worker did not start goes back; 3 min
	LostAfter     time.Duration // …or at once when its agent asks after this time and does not list it; 5 s
	WorkerSilence time.Duration // a running build whose worker is silent fails; 10 min
	CancelSilence time.Duration // …while it is being cancelled; 20 s
	JobGrace      time.Duration // a worker that overruns the build's time limit by this much is given up; 1 min
	UpgradeMark   time.Duration // no builds for an agent that was told to upgrade; 60 s
	UpgradeWithin time.Duration // an agent that was offered a release and makes no progress has failed; 15 min
	UpgradeSoak   time.Duration // …one that reports it is upgraded for good when it has not said so before; 90 s (a bad version is gone by then)
	TokenLife     time.Duration // of an enrolment token; 3 days
	ScriptWithin  time.Duration // a pipeline script fetched but not begun is offered again; 1 min
	KeepBuilds    time.Duration // builds that ended so long ago are removed, and scripts; 0 keeps them
	KeepLogs      time.Duration // …and the logs of builds that did; 0 keeps them
	KeepBytes     int64         // the oldest logs, then builds, are removed while the data base uses more; 0 is no limit
	KeepArtifacts time.Duration // artifacts saved so long ago are removed, unless their build file says otherwise; 0 keeps them with their builds
	KeepEvery     time.Duration // how often that is looked at; 1 h
	BackupEvery   time.Duration // how often the controller backs itself up into the folder backups; 0 is never
	BackupKeep    int           // how many of those are kept; 7
	MaxHandOuts   int           // a build handed out so often without a start fails; 10
	MaxAudit      int           // entries of the audit log; older ones are forgotten; 100,000
	MaxLogLines   int64         // of one build; more are refused with status 509 (protocol §6.8); 2,000,000

	CallsPerSecond float64 // of one agent, in the long run; more are refused with 429; 50, and no limit below 0

	ArtifactBytes      int64 // of the files of one artifact; 1 GiB
	BuildArtifactBytes int64 // of the files of all artifacts of a build; 4 GiB
	AllArtifactBytes   int64 // of all artifacts as they are stored; the oldest are removed for new ones; 20 GiB

	AskSpacing       time.Duration // between two calls of ask; 3 s
	StatusSpacing    time.Duration // 3 s
	HeartbeatSpacing time.Duration // 4 s
	PipelineSpacing  time.Duration // 10 s
}

// maxWait bounds what a client may ask for with "Prefer: wait".
const maxWait = 60 * time.Second

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Version == "" {
		o.Version = "v0.0.0-dev.0"
	}
	for _, d := range []struct {
		value   *time.Duration
		initial time.Duration
	}{
		{&o.OfflineAfter, 50 * time.Second},
		{&o.StartWithin, 3 * time.Minute},
		{&o.LostAfter, 5 * time.Second},
		{&o.WorkerSilence, 10 * time.Minute},
		{&o.CancelSilence, 20 * time.Second},
		{&o.JobGrace, time.Minute},
		{&o.UpgradeMark, time.Minute},
		{&o.UpgradeWithin, 15 * time.Minute},
		{&o.UpgradeSoak, 90 * time.Second},
		{&o.TokenLife, 3 * 24 * time.Hour},
		{&o.ScriptWithin, time.Minute},
		{&o.KeepEvery, time.Hour},
		{&o.AskSpacing, 3 * time.Second},
		{&o.StatusSpacing, 3 * time.Second},
		{&o.HeartbeatSpacing, 4 * time.Second},
		{&o.PipelineSpacing, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.initial
		}
	}
	if o.CallsPerSecond == 0 {
		o.CallsPerSecond = 50
	}
	if o.BackupKeep <= 0 {
		o.BackupKeep = 7
	}
	if o.MaxHandOuts <= 0 {
		o.MaxHandOuts = 10
	}
	if o.MaxAudit <= 0 {
		o.MaxAudit = 100_000
	}
	for _, n := range []struct {
		value   *int64
		initial int64
	}{{&o.ArtifactBytes, 1 << 30}, {&o.BuildArtifactBytes, 4 << 30}, {&o.AllArtifactBytes, 20 << 30}} {
		if *n.value <= 0 {
			*n.value = n.initial
		}
	}
	if o.MaxLogLines <= 0 {
		o.MaxLogLines = 2_000_000
	}
	return o
}

// tick is how often the timers are looked at: often enough for the shortest of them.
func (o Options) tick() time.Duration {
	shortest := min(o.OfflineAfter, o.StartWithin, o.WorkerSilence, o.CancelSilence, o.JobGrace, o.UpgradeWithin, o.UpgradeSoak)
	return max(10*time.Millisecond, min(shortest/8, time.Second))
}
