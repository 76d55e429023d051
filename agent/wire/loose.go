package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// loose is one member of an answer that may be spoilt without costing its neighbours. encoding/json alone will not
// do: it leaves a pointer to zero where a number should have been, and zero builds means "no limit" (protocol §2.2).
type loose[T any] struct {
	value *T // nil when absent, null or spoilt
	err   error
}

// UnmarshalJSON never fails: what is wrong is remembered.
func (l *loose[T]) UnmarshalJSON(data []byte) error {
	l.value, l.err = nil, nil
	var v *T
	if err := json.Unmarshal(data, &v); err != nil {
		l.err = err
		return nil
	}
	l.value = v
	return nil
}

// looseReply mirrors HeartbeatReply.
type looseReply struct {
	MasterVersion       loose[string]                   `json:"masterVersion"`
	SlaveVersion        loose[string]                   `json:"slaveVersion"`
	AgentStatus         loose[AgentStatus]              `json:"agentStatus"`
	ParallelTaskCount   loose[int]                      `json:"parallelTaskCount"`
	DockerParallelCount loose[int]                      `json:"dockerParallelTaskCount"`
	Envs                loose[map[string]loose[string]] `json:"envs"`
	Gateway             loose[string]                   `json:"gateway"`
	FileGateway         loose[string]                   `json:"fileGateway"`
	Props               loose[looseProps]               `json:"props"`
	Language            loose[string]                   `json:"language"`
	CreateMod           loose[bool]                     `json:"createMod"`
}

// looseProps mirrors ReplyProps.
type looseProps struct {
	IgnoreLocalIPs loose[string] `json:"ignoreLocalIps"`
	KeepLogsHours  loose[int]    `json:"keepLogsHours"`
	EnablePipeline loose[bool]   `json:"enablePipeline"`
}

// DecodeHeartbeat reads a heartbeat reply. Members of a wrong type are left nil and reported in the error, and
// variables of a wrong type are left out; the reply then still holds everything else and may be used. It is nil when
// there is none, or when it is no object at all.
func DecodeHeartbeat(raw json.RawMessage) (*HeartbeatReply, error) {
	var l looseReply
	ok, err := Part("heartbeat", raw, &l)
	if !ok || err != nil {
		return nil, err
	}
	var errs []error
	r := &HeartbeatReply{
		ParallelTaskCount:   take(&errs, "parallelTaskCount", l.ParallelTaskCount),
		DockerParallelCount: take(&errs, "dockerParallelTaskCount", l.DockerParallelCount),
		Gateway:             take(&errs, "gateway", l.Gateway),
		FileGateway:         take(&errs, "fileGateway", l.FileGateway),
		Language:            take(&errs, "language", l.Language),
		CreateMod:           take(&errs, "createMod", l.CreateMod),
	}
	if v := take(&errs, "masterVersion", l.MasterVersion); v != nil {
		r.MasterVersion = *v
	}
	if v := take(&errs, "slaveVersion", l.SlaveVersion); v != nil {
		r.SlaveVersion = *v
	}
	if v := take(&errs, "agentStatus", l.AgentStatus); v != nil {
		r.AgentStatus = *v
	}
	if envs := take(&errs, "envs", l.Envs); envs != nil {
		r.Envs = make(map[string]string, len(*envs))
		var spoilt []string
		for name, value := range *envs {
			if value.value != nil {
				r.Envs[name] = *value.value
			} else if value.err != nil {
				spoilt = append(spoilt, oneLine(name))
			}
		}
		if len(spoilt) > 0 {
			slices.Sort(spoilt)
			errs = append(errs, fmt.Errorf("envs: no text in %q", spoilt[:min(len(spoilt), 5)]))
		}
	}
	if p := take(&errs, "props", l.Props); p != nil {
		r.Props = &ReplyProps{
			IgnoreLocalIPs: take(&errs, "props.ignoreLocalIps", p.IgnoreLocalIPs),
			KeepLogsHours:  take(&errs, "props.keepLogsHours", p.KeepLogsHours),
			EnablePipeline: take(&errs, "props.enablePipeline", p.EnablePipeline),
		}
	}
	if len(errs) > 0 {
		return r, fmt.Errorf("heartbeat: %w", errors.Join(errs...))
	}
	return r, nil
}

func take[T any](errs *[]error, name string, l loose[T]) *T {
	if l.err != nil {
		*errs = append(*errs, fmt.Errorf("%s: %w", name, brief(l.err)))
	}
	return l.value
}
