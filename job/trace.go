package job

import "strings"

// Trace is a job's W3C trace context: the values of the headers traceparent and tracestate.
// The zero Trace is none.
type Trace struct {
	Parent, State string
}

// IsZero reports whether the job belongs to no trace.
func (t Trace) IsZero() bool { return t.Parent == "" }

// maxTraceState is the longest tracestate that is kept, in bytes; the standard
// asks for no more.
const maxTraceState = 512

// ParseTrace reads the headers. As the standard requires, an invalid traceparent is ignored,
// and a tracestate that is not printable or longer than 512 bytes is dropped alone. Of later
// versions the fields of version 00 are kept.
func ParseTrace(parent, state string) Trace {
	parent = strings.Trim(parent, " \t")
	// version "-" trace-id "-" parent-id "-" trace-flags
	const length = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(parent) < length || parent[2] != '-' || parent[35] != '-' || parent[52] != '-' {
		return Trace{}
	}
	version, id, span, flags := parent[:2], parent[3:35], parent[36:52], parent[53:length]
	for _, field := range []string{version, id, span, flags} {
		if strings.Trim(field, "0123456789abcdef") != "" {
			return Trace{}
		}
	}
	rest := parent[length:]
	if version == "ff" || version == "00" && rest != "" || rest != "" && rest[0] != '-' ||
		strings.Trim(id, "0") == "" || strings.Trim(span, "0") == "" {
		return Trace{}
	}
	if version != "00" {
		parent = "00" + parent[2:length]
	}
	state = strings.Trim(state, " \t,")
	if len(state) > maxTraceState || strings.ContainsFunc(state, func(r rune) bool { return (r < ' ' || r > '~') && r != '\t' }) {
		state = ""
	}
	return Trace{Parent: parent, State: state}
}

// TraceFile is the file in a job's working directory, beside inputs/ and outputs/, with the
// trace context for the runner's work as MarshalText writes it. It exists only for jobs with
// a trace.
const TraceFile = ".traceparent"

// MarshalText writes one line with the traceparent, and one with the tracestate if there is
// one.
func (t Trace) MarshalText() ([]byte, error) {
	text := t.Parent + "\n"
	if t.State != "" {
		text += t.State + "\n"
	}
	return []byte(text), nil
}

// UnmarshalText reads the output of MarshalText with ParseTrace.
func (t *Trace) UnmarshalText(text []byte) error {
	parent, rest, _ := strings.Cut(string(text), "\n")
	state, _, _ := strings.Cut(rest, "\n")
	*t = ParseTrace(parent, state)
	return nil
}

// Environ returns the trace as the conventional environment variables; nil for none.
func (t Trace) Environ() []string {
	if t.IsZero() {
		return nil
	}
	env := []string{"TRACEPARENT=" + t.Parent}
	if t.State != "" {
		env = append(env, "TRACESTATE="+t.State)
	}
	return env
}
