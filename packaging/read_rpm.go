package packaging

import (
	"errors"
	"io"
)

func readRPM(io.ReaderAt, int64) (Listing, error) { return Listing{}, errors.ErrUnsupported }
