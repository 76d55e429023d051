package job

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/devops-agent/devops-agent/agent/wire"
)

// Code says why a build failed around its worker. The server and its users know these numbers (protocol §3.6.6).
type Code int

// The codes this agent uses.
const (
	WorkerFailed    Code = 2128040 // the worker left an error message, or was killed
	HealFailed      Code = 2128041 // worker-agent.jar was missing and the copy in tmp/ is no good
	WorkerMissing   Code = 2128042 // worker-agent.jar is missing and there is no copy
	TmpDirFailed    Code = 2128043 // build_tmp cannot be made
	StartFailed     Code = 2128044 // the worker's process cannot be started
	ScriptsFailed   Code = 2128045 // the start scripts cannot be written
	DockerOS        Code = 2128046 // docker builds do not exist on this system
	DockerNoClient  Code = 2128049 // there is no docker client
	DockerLogin     Code = 2128059 // the server could not fetch the registry login
	DockerDebugFail Code = 2128061 // a docker debugging session failed
)

// sentence is the fixed text of a code, in English and Chinese: users see it beside the specifics.
func (c Code) sentence(lang string) string {
	texts := map[Code][2]string{
		WorkerFailed:    {"the worker process ended abnormally", "构建进程异常结束"},
		HealFailed:      {"the worker file could not be restored", "恢复构建执行文件失败"},
		WorkerMissing:   {"the worker file is missing", "构建执行文件丢失"},
		TmpDirFailed:    {"the temporary directory of builds could not be made", "创建构建临时目录失败"},
		StartFailed:     {"the worker process could not be started", "启动构建进程失败"},
		ScriptsFailed:   {"the start scripts of the worker could not be written", "生成构建启动脚本失败"},
		DockerOS:        {"docker builds are not supported on this system", "当前系统不支持 Docker 构建"},
		DockerNoClient:  {"no docker client is available", "没有可用的 Docker 客户端"},
		DockerLogin:     {"the registry login could not be fetched", "获取镜像仓库凭据失败"},
		DockerDebugFail: {"the docker debugging session failed", "Docker 登录调试失败"},
	}
	return pick(lang, texts[c][0], texts[c][1])
}

// pick chooses the Chinese text for zh locales, as BK-CI's own default is zh_CN (protocol §2.2, devops.language).
func pick(lang, english, chinese string) string {
	if strings.HasPrefix(strings.ToLower(lang), "zh") {
		return chinese
	}
	return english
}

// Outcome is how a build ended, as BK-CI shows it to a user. Its texts are made here and nowhere else.
type Outcome struct {
	Success bool             `json:"success"`
	Message string           `json:"message"`
	Error   *wire.BuildError `json:"error"` // nil on success
}

// Finish is the report of the outcome (protocol §1.6.8).
func (o Outcome) Finish(b wire.Build) wire.Finish {
	return wire.Finish{Build: b, Success: o.Success, Message: o.Message, Error: o.Error}
}

// maxMessage bounds a report's message, in bytes: a worker writes at most 2,048 characters (protocol §3.6.5).
const maxMessage = 16 << 10

// Failed makes the outcome of a build that failed. why is shown to the build's user.
func Failed(lang string, code Code, why string) Outcome {
	if len(why) > maxMessage {
		why = strings.ToValidUTF8(why[:maxMessage], "") + "…"
	}
	return Outcome{Message: why, Error: &wire.BuildError{Type: wire.ErrorUser, Code: int(code), Message: code.sentence(lang)}}
}

// succeeded is success by the error file. how is the exit of what we started when that was not 0, which is the end of many a good
// build: a worker may kill its own shell (protocol §3.6.5). A server that misses the worker's last call shows it.
func succeeded(lang string, pid int, how string) Outcome {
	if how != "" {
		return Outcome{Success: true, Message: fmt.Sprintf(pick(lang, "the worker process (pid %d) ended without an error of its own (%s)", "构建进程（pid %d）已结束，未报告错误（%s）"), pid, how)}
	}
	return Outcome{Success: true, Message: fmt.Sprintf(pick(lang, "the worker process (pid %d) ended normally", "构建进程（pid %d）正常结束"), pid)}
}

// killedText is what the error file holds until the worker empties it (protocol §3.6.5).
func killedText(lang string) string {
	return pick(lang,
		"the worker process was killed, or died before it could say why; see the log of the machine and its memory",
		"构建进程被终止，或在报告原因前已退出；请检查构建机的系统日志与内存")
}

// DockerRefused answers a docker build on an agent that cannot run containers (protocol §3.6.2, statements 67 and 68).
func DockerRefused(lang, goos string, d *wire.DockerBuild) Outcome {
	switch {
	case d.Credential != nil && d.Credential.ErrMsg != "":
		return Failed(lang, DockerLogin, d.Credential.ErrMsg)
	case goos != "linux":
		return Failed(lang, DockerOS, pick(lang, "this machine runs ", "本机系统为 ")+goos)
	}
	return Failed(lang, DockerNoClient, pick(lang, "this agent does not run docker builds yet", "本 agent 暂不支持 Docker 构建"))
}

// DebugRefused answers a docker debugging session (protocol §1.6.10, statement 112).
func DebugRefused(lang string) *wire.BuildError {
	return &wire.BuildError{Type: wire.ErrorUser, Code: int(DockerDebugFail), Message: DockerDebugFail.sentence(lang) + ": " +
		pick(lang, "this agent does not run docker builds yet", "本 agent 暂不支持 Docker 构建")}
}

// NoSeat answers a build for which there is no seat: the server sent what was not asked for. The original drops
// such a build, which costs its user minutes (weakness W-20).
func NoSeat(lang string, b wire.Build) Outcome {
	code := StartFailed
	if b.Docker != nil {
		code = DockerNoClient
	}
	return Failed(lang, code, pick(lang, "this machine has no free seat for the build", "本机没有空闲的构建名额"))
}

// Unusable answers a build whose ids cannot be file names.
func Unusable(lang string, err error) Outcome {
	return Failed(lang, ScriptsFailed, pick(lang, "refused: ", "已拒绝：")+err.Error())
}

// Lost answers a build that an earlier agent had claimed and never started.
func lost(lang string) Outcome {
	return Failed(lang, StartFailed, pick(lang, "the agent was stopped before it could start the worker", "agent 在启动构建进程前被停止"))
}

// cutOff answers a build that ran when the machine was restarted.
func cutOff(lang string) Outcome {
	return Failed(lang, WorkerFailed, pick(lang, "the machine was restarted, or lost power, while the build was running", "构建运行期间机器被重启或断电"))
}

// Stop is why a build was stopped together with its agent: the cause of the halt that [Runner.Run] takes.
type Stop struct {
	Waited time.Duration // for the build to end by itself; 0 when there was no waiting
}

// Error is the reason in English.
func (s *Stop) Error() string { return s.sentence("en") }

func (s *Stop) sentence(lang string) string {
	if s.Waited <= 0 {
		return pick(lang, "the agent on this machine was told to stop at once, and stopped the build",
			"本机的 agent 被要求立即停止，构建随之被终止")
	}
	waited := s.Waited.Round(time.Millisecond)
	return fmt.Sprintf(pick(lang,
		"the agent on this machine was stopped; it waited %v for the build to end (drain.timeout) and then stopped the build",
		"本机的 agent 被停止；在等待构建结束 %v（drain.timeout）后终止了构建"), waited)
}

// stopped answers a build that ended with its agent.
func stopped(lang string, why error) Outcome {
	text := why.Error()
	var stop *Stop
	if errors.As(why, &stop) {
		text = stop.sentence(lang)
	}
	return Failed(lang, WorkerFailed, text)
}
