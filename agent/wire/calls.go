package wire

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Startup reports this machine to the server (protocol §1.6.1) and returns the state of its record. An answer
// without a state is an error.
func (c *Client) Startup(ctx context.Context, s Startup) (AgentStatus, error) {
	return c.status(ctx, Call{Op: "startup", Method: http.MethodPost, Path: PathStartup, Body: s})
}

// Status asks for the state of this agent's record (protocol §1.6.2).
func (c *Client) Status(ctx context.Context) (AgentStatus, error) {
	return c.status(ctx, Call{Op: "status", Method: http.MethodGet, Path: PathStatus})
}

func (c *Client) status(ctx context.Context, call Call) (AgentStatus, error) {
	answer, err := c.Do(ctx, call)
	if err != nil {
		return "", err
	}
	var status AgentStatus
	if _, err := Part(call.Op, answer.Data, &status); err != nil {
		return "", &BodyError{Op: call.Op, Type: "application/json", Err: err}
	}
	if status == "" {
		return "", &BodyError{Op: call.Op, Type: "application/json", Err: errors.New("no agent status in it")}
	}
	return status, nil
}

// Beat sends one heartbeat to the endpoint of the seed generation (protocol §1.6.3).
func (c *Client) Beat(ctx context.Context, h Heartbeat) (*HeartbeatReply, error) {
	answer, err := c.Do(ctx, Call{Op: "heartbeat", Method: http.MethodPost, Path: PathHeartbeat, Body: h})
	if err != nil {
		return nil, err
	}
	return DecodeHeartbeat(answer.Data)
}

// CheckUpgrade asks which parts the server wants replaced (protocol §1.6.4).
func (c *Client) CheckUpgrade(ctx context.Context, u UpgradeCheck) (UpgradeItem, error) {
	answer, err := c.Do(ctx, Call{Op: "check upgrade", Method: http.MethodPost, Path: PathUpgradeNew, Body: u})
	if err != nil || answer.AgentStatus == Deleted {
		return UpgradeItem{}, err
	}
	return decodeUpgrade(answer.Data)
}

func decodeUpgrade(raw json.RawMessage) (UpgradeItem, error) {
	var item UpgradeItem
	if _, err := Part("check upgrade", raw, &item); err != nil {
		return UpgradeItem{}, err
	}
	return item, nil
}

// FinishUpgrade tells the server how an upgrade went and clears its mark (protocol §1.6.5).
func (c *Client) FinishUpgrade(ctx context.Context, success bool) error {
	_, err := c.Do(ctx, Call{Op: "finish upgrade", Method: http.MethodDelete, Path: PathUpgrade,
		Query: url.Values{"success": {strconv.FormatBool(success)}}})
	return err
}

// Download asks for a file of the server's package directory (protocol §1.6.6), from an offset on when that is above 0. The eTag,
// when there is one, is the MD5 of the copy that is here. It returns the answer whatever its status; its body has no time limit
// but ctx.
func (c *Client) Download(ctx context.Context, file, eTag string, offset int64) (*http.Response, error) {
	header := http.Header{"Accept-Encoding": {"identity"}}
	if offset > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	req, err := c.request(ctx, Call{Method: http.MethodGet, Path: PathDownload, Header: header})
	if err != nil {
		return nil, err
	}
	req.URL.RawQuery = "file=" + strings.ReplaceAll(url.QueryEscape(file), "%2F", "/") // as the original sends it, in this order
	if eTag != "" {
		req.URL.RawQuery += "&eTag=" + url.QueryEscape(eTag)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	return resp, nil
}

// Claim asks for one job of a kind (protocol §1.6.7). A nil build means that nothing is queued. With wait > 0 the
// server is asked to hold an empty answer for as long; waited says whether it knows how.
// The call is destructive on the server: an answer that is lost costs the job minutes (weakness W-22).
func (c *Client) Claim(ctx context.Context, kind BuildKind, wait time.Duration) (build *Build, waited bool, err error) {
	answer, err := c.Do(ctx, Call{Op: "claim build", Method: http.MethodGet, Path: PathClaim,
		Query: url.Values{"buildType": {string(kind)}}, Wait: wait})
	if err != nil {
		return nil, false, err
	}
	build, err = DecodeBuild(answer.Data)
	return build, answer.Waited, err
}

// DecodeBuild reads a claimed job, nil when there is none. Its ids are not checked here: a job that cannot be
// run is refused by name (package job), not dropped.
func DecodeBuild(raw json.RawMessage) (*Build, error) {
	return decodePart[Build]("claim build", raw)
}

// Finish reports the end of a build (protocol §1.6.8).
func (c *Client) Finish(ctx context.Context, f Finish) error {
	_, err := c.Do(ctx, Call{Op: "report build", Method: http.MethodPost, Path: PathFinish, Body: f})
	return err
}

// Pipeline fetches one pipeline task (protocol §1.6.9), nil when there is none.
func (c *Client) Pipeline(ctx context.Context) (*Pipeline, error) {
	answer, err := c.Do(ctx, Call{Op: "fetch pipeline task", Method: http.MethodGet, Path: PathPipelines})
	if err != nil {
		return nil, err
	}
	return decodePart[Pipeline]("fetch pipeline task", answer.Data)
}

// ReportPipeline sends one state change of a pipeline task (protocol §1.6.9).
func (c *Client) ReportPipeline(ctx context.Context, r PipelineReport) error {
	_, err := c.Do(ctx, Call{Op: "report pipeline task", Method: http.MethodPut, Path: PathPipelines, Body: r,
		Timeout: max(c.Timeout, 30*time.Second)}) // the output may be a megabyte
	return err
}

// Debug fetches one docker login debugging session (protocol §1.6.10), nil when there is none.
func (c *Client) Debug(ctx context.Context) (*Debug, error) {
	answer, err := c.Do(ctx, Call{Op: "fetch docker debug", Method: http.MethodGet, Path: PathDebug})
	if err != nil {
		return nil, err
	}
	return decodePart[Debug]("fetch docker debug", answer.Data)
}

// ReportDebug answers a docker login debugging session (protocol §1.6.10).
func (c *Client) ReportDebug(ctx context.Context, r DebugReport) error {
	_, err := c.Do(ctx, Call{Op: "report docker debug", Method: http.MethodPost, Path: PathDebug, Body: r})
	return err
}

func decodePart[T any](op string, raw json.RawMessage) (*T, error) {
	var v T
	ok, err := Part(op, raw, &v)
	if !ok || err != nil {
		return nil, err
	}
	return &v, nil
}

// Parts is an AskReply with every part decoded on its own. Errs holds what could not be read; the part is then
// nil, except Heartbeat, which may be half filled.
type Parts struct {
	AgentStatus AgentStatus // of the envelope, "" when null
	Waited      bool        // the server held the answer or could have (RFC 7240)
	Heartbeat   *HeartbeatReply
	Build       *Build
	Upgrade     *UpgradeItem
	Pipeline    *Pipeline
	Debug       *Debug
	Errs        []error
}

// Ask makes the one call of the ask generation (protocol §1.7.2). With wait > 0 the server is asked to hold an
// empty answer for as long.
func (c *Client) Ask(ctx context.Context, ask Ask, wait time.Duration) (*Parts, error) {
	answer, err := c.Do(ctx, Call{Op: "ask", Method: http.MethodPost, Path: PathAsk, Body: ask, Wait: wait})
	if err != nil {
		return nil, err
	}
	return decodeAsk(answer)
}

// decodeAsk reads the five parts, each on its own.
func decodeAsk(answer Answer) (*Parts, error) {
	parts := &Parts{AgentStatus: answer.AgentStatus, Waited: answer.Waited}
	var reply AskReply
	if _, err := Part("ask", answer.Data, &reply); err != nil {
		return nil, &BodyError{Op: "ask", Type: "application/json", Err: err}
	}
	note := func(err error) {
		if err != nil {
			parts.Errs = append(parts.Errs, err)
		}
	}
	var err error
	parts.Heartbeat, err = DecodeHeartbeat(reply.Heartbeat)
	note(err)
	parts.Build, err = DecodeBuild(reply.Build)
	note(err)
	parts.Upgrade, err = decodePart[UpgradeItem]("check upgrade", reply.Upgrade)
	note(err)
	parts.Pipeline, err = decodePart[Pipeline]("fetch pipeline task", reply.Pipeline)
	note(err)
	parts.Debug, err = decodePart[Debug]("fetch docker debug", reply.Debug)
	note(err)
	return parts, nil
}
