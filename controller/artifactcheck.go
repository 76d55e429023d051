package controller

import "path/filepath"

// artifacts finds artifacts whose archives are missing or changed, and those that are not in the record of their build.
func (c *checker) artifacts() error {
	type row struct {
		build        int64
		name, digest string
		size         int64
		built, noted bool
	}
	var rows []row
	err := c.each(func(scan func(...any) error) error {
		var r row
		err := scan(&r.build, &r.name, &r.digest, &r.size, &r.built, &r.noted)
		rows = append(rows, r)
		return err
	}, `SELECT a.build, a.name, a.sha256, a.size, b.number IS NOT NULL,
		CASE WHEN json_valid(b.doc) THEN EXISTS (SELECT 1 FROM json_each(b.doc, '$.artifacts') e WHERE json_extract(e.value, '$.name') = a.name
			AND json_extract(e.value, '$.sha256') = a.sha256 AND json_extract(e.value, '$.gone') IS NULL) ELSE 1 END
		FROM artifact a LEFT JOIN build b ON b.number = a.build ORDER BY a.build, a.name`)
	if err != nil {
		return err
	}
	seen := make(map[string]error)
	for _, r := range rows {
		switch {
		case !r.built:
			c.fault("artifact %s of build #%d: there is no such build", clip(r.name, 100), r.build)
		case !r.noted:
			c.fault("artifact %s of build #%d is not in the record of the build", clip(r.name, 100), r.build)
		}
		wrong, known := seen[r.digest]
		if !known {
			c.report.Files++
			wrong = checkObject(c.ctx, filepath.Join(c.report.Dir, "files", artifactBlobs, filepath.Base(r.digest)), ReleaseFile{SHA256: r.digest, Size: r.size})
			seen[r.digest] = wrong
		}
		if wrong == nil {
			continue
		}
		var left int // it may have been removed while we looked
		if err := c.db.QueryRowContext(c.ctx, `SELECT count(*) FROM artifact WHERE build = ? AND name = ? AND sha256 = ?`, r.build, r.name, r.digest).Scan(&left); err != nil {
			return err
		}
		if left > 0 {
			c.fault("artifact %s of build #%d: %v", clip(r.name, 100), r.build, wrong)
		}
	}
	return nil
}
