"""The leaderboard as static pages."""

from quantinel.bench.site.build import SiteSummary, build_site

__all__ = ["SiteSummary", "build_site"]
