package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/devops-agent/devops-agent/controller"
)

func tokenCommand(f *flags) *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make, list and revoke tokens for the operator API and the web page", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tokenAddCommand(f), tokenListCommand(f), tokenRevokeCommand(f))
	return cmd
}

func tokenAddCommand(f *flags) *cobra.Command {
	var role, expires string
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Make a token and write it to standard output, this once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := controller.NewAccessToken{Name: args[0], Role: controller.Role(role)}
			if expires != "" {
				life, err := parseLife(expires)
				if err != nil {
					return fmt.Errorf("--expires: %w", err)
				}
				in.Expires = int64(life / time.Second)
			}
			c, err := f.open()
			if err != nil {
				return err
			}
			var made struct {
				Token string `json:"token"`
				controller.AccessToken
			}
			if err := c.call(cmd.Context(), "POST", "/tokens", in, &made); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(made)
			}
			_, _ = fmt.Fprintf(f.err, "%s token %s, valid %s; it is not shown again:\n", made.Role, made.Name, until(made.ExpiresAt))
			_, err = fmt.Fprintln(f.out, made.Token)
			return err
		},
	}
	cmd.Flags().StringVar(&role, "role", string(controller.RoleReader), "read-only or operator")
	cmd.Flags().StringVar(&expires, "expires", "", "`time` that it is valid: 12h, 90d (default: until it is revoked)")
	return cmd
}

func tokenListCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List tokens, the newest first, without their texts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var list []controller.AccessToken
			if err := c.call(cmd.Context(), "GET", "/tokens", nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tNAME\tROLE\tSTATE\tCREATED\tBY\tEXPIRES\tLAST USED")
			for _, t := range list {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, plainLine(t.Name), t.Role, t.State, moment(t.CreatedAt), plainLine(t.CreatedBy),
					moment(t.ExpiresAt), moment(t.UsedAt))
			}
			return w.Flush()
		},
	}
}

func tokenRevokeCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID|NAME", Short: "End a token, its sessions of the web page, and what is under way with it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var gone controller.AccessToken
			if err := c.call(cmd.Context(), "DELETE", "/tokens/"+url.PathEscape(args[0]), nil, &gone); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(gone)
			}
			_, err = fmt.Fprintf(f.out, "token %s (%s) is %s\n", plainLine(gone.Name), gone.ID, gone.State)
			return err
		},
	}
}

// moment is a time of the API for a person, "-" for none.
func moment(at int64) string {
	if at == 0 {
		return "-"
	}
	return time.UnixMilli(at).Format(time.DateTime)
}

// until is how long something is valid, for a person.
func until(at int64) string {
	if at == 0 {
		return "until it is revoked"
	}
	return "until " + moment(at)
}

// parseLife reads how long something shall be valid: a duration of Go's, or whole days as in 90d.
func parseLife(text string) (time.Duration, error) {
	life, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 15)
		life = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || life < time.Second {
		return 0, fmt.Errorf("%q: a time like 45m, 12h or 90d, please", text)
	}
	return life, nil
}

func enrollTokenCommand(f *flags) *cobra.Command {
	var in controller.NewEnrolToken
	var expires string
	var more []string
	cmd := &cobra.Command{
		Use: "enroll-token", Short: "Make a token by which machines enrol themselves, for three days unless told otherwise; list and revoke them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if expires != "" {
				life, err := parseLife(expires)
				if err != nil {
					return fmt.Errorf("--expires: %w", err)
				}
				in.Expires = int64(life / time.Second)
			}
			in.Labels = append(in.Labels, more...)
			c, err := f.open()
			if err != nil {
				return err
			}
			var made struct {
				Token string `json:"token"`
				controller.EnrolTokenInfo
			}
			if err := c.call(cmd.Context(), "POST", "/enroll-tokens", in, &made); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(made)
			}
			machines, pin := "", ""
			if c.pin != "" {
				pin = " --pin " + c.pin
			}
			if made.Uses == 1 {
				machines = " for one machine"
			} else if made.Uses > 1 {
				machines = fmt.Sprintf(" for %d machines", made.Uses)
			}
			_, _ = fmt.Fprintf(f.err, "valid until %s%s; on the machine: devopsAgent enroll --gateway %s%s, and give it this token:\n", moment(made.ExpiresAt), machines, c.base, pin)
			_, err = fmt.Fprintln(f.out, made.Token)
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&in.Project, "project", "", "project (default "+controller.DefaultProject+")")
	fl.StringSliceVar(&in.Labels, "label", nil, "label of the agents that enrol with it (may be repeated)")
	fl.StringSliceVar(&more, "labels", nil, "the same, several at once: `L,…`")
	fl.IntVar(&in.Uses, "uses", 0, "`number` of machines that may enrol with it; 0 is any number")
	fl.StringVar(&expires, "expires", "", "`time` that it is valid: 45m, 12h, 90d (default 3d)")
	fl.StringVar(&in.Note, "note", "", "`text` for the list: what it is for")
	cmd.AddCommand(enrollTokenListCommand(f), enrollTokenRevokeCommand(f))
	return cmd
}

func enrollTokenListCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List enrolment tokens, the newest first, without their texts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var list []controller.EnrolTokenInfo
			if err := c.call(cmd.Context(), "GET", "/enroll-tokens", nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tPROJECT\tSTATE\tUSED\tEXPIRES\tCREATED\tBY\tLABELS\tNOTE")
			for _, t := range list {
				used := strconv.Itoa(t.Used)
				if t.Uses > 0 {
					used += " of " + strconv.Itoa(t.Uses)
				}
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, plainLine(t.Project), t.State, used, moment(t.ExpiresAt), moment(t.CreatedAt),
					plainLine(t.CreatedBy), strings.Join(t.Labels, ","), plainLine(t.Note))
			}
			return w.Flush()
		},
	}
}

func enrollTokenRevokeCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "End an enrolment token; agents that run stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var gone controller.EnrolTokenInfo
			if err := c.call(cmd.Context(), "DELETE", "/enroll-tokens/"+url.PathEscape(args[0]), nil, &gone); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(gone)
			}
			_, err = fmt.Fprintf(f.out, "enrolment token %s is %s; %d enrolled with it\n", gone.ID, gone.State, gone.Used)
			return err
		},
	}
}

func auditCommand(f *flags) *cobra.Command {
	var limit int
	var before int64
	cmd := &cobra.Command{
		Use: "audit", Short: "List what operators did, the newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.open()
			if err != nil {
				return err
			}
			var list []controller.AuditEntry
			q := url.Values{"limit": {strconv.Itoa(limit)}, "before": {strconv.FormatInt(before, 10)}}
			if err := c.call(cmd.Context(), "GET", "/audit?"+q.Encode(), nil, &list); err != nil {
				return err
			}
			if f.json {
				return f.printJSON(list)
			}
			w := tabwriter.NewWriter(f.out, 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "ID\tAT\tWHO\tROLE\tFROM\tDID\tTO\tOUTCOME")
			for _, e := range list {
				from := e.Address
				if e.Via != "" {
					from += " (" + e.Via + ")"
				}
				_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, moment(e.At), plainLine(e.Who), e.Role, plainLine(from), e.Verb,
					plainLine(strings.TrimSpace(e.Object+" "+e.Name)), e.Outcome)
			}
			return w.Flush()
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 50, "how many, at most 1000")
	cmd.Flags().Int64Var(&before, "before", 0, "only those with an `id` below this one")
	return cmd
}
