package controller

import "net/http"

// pageTokens are tokens as the page lists them, the newest first: there may be 10,000, of which it asks for a few.
type pageTokens[T any] struct {
	Valid      []T `json:"valid"`
	Ended      []T `json:"ended"`      // within the last 30 days
	ValidCount int `json:"validCount"` // how many there are, also those that are not listed
	EndedCount int `json:"endedCount"`
}

// tokenPage divides tokens into those that are valid and the others, and keeps at most so many of each.
func tokenPage[T any](all []T, valid func(T) bool, mostValid, mostEnded int64) pageTokens[T] {
	p := pageTokens[T]{Valid: []T{}, Ended: []T{}}
	for _, t := range all {
		list, count, most := &p.Ended, &p.EndedCount, mostEnded
		if valid(t) {
			list, count, most = &p.Valid, &p.ValidCount, mostValid
		}
		if int64(*count) < most {
			*list = append(*list, t)
		}
		*count++
	}
	return p
}

// pageTokenList answers with tokens: ?valid=N&ended=N says how many of them, 100 and none unless told otherwise.
func pageTokenList[T any](w http.ResponseWriter, r *http.Request, all func() []T, valid func(T) bool) {
	mostValid, err := queryInt(r, "valid", 100)
	if err != nil {
		operatorError(w, err)
		return
	}
	mostEnded, err := queryInt(r, "ended", 0)
	if err != nil {
		operatorError(w, err)
		return
	}
	reply(w, tokenPage(all(), valid, mostValid, mostEnded), nil)
}

// pageAccessTokens is GET /page/tokens[?valid=N&ended=N].
func (s *Server) pageAccessTokens(w http.ResponseWriter, r *http.Request) {
	pageTokenList(w, r, s.Tokens, func(t AccessToken) bool { return t.State == TokenValid })
}

// pageEnrolTokens is GET /page/enroll-tokens[?valid=N&ended=N].
func (s *Server) pageEnrolTokens(w http.ResponseWriter, r *http.Request) {
	pageTokenList(w, r, s.EnrolTokens, func(t EnrolTokenInfo) bool { return t.State == TokenValid })
}
